from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests import _models
from tests.integrations._training import DATA, assert_same_weights
from tests.methods._by_hand import by_hand
from torch import nn
from transformers import TrainingArguments

from evenkeel import components
from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import Method, parse_mix
from evenkeel.methods.bitfit import BitFit
from evenkeel.testing import MethodContract

Arguments = Callable[..., TrainingArguments]


def trained_in_bert(name: str) -> bool:
    """The published rule, on BERT's names."""
    return "bias" in name or "classifier" in name


def test_biases_and_the_head_are_trained_as_by_hand_and_the_rest_stays(arguments: Arguments) -> None:
    ours, theirs, before = (_models.bert().double() for _ in range(3))
    MethodTrainer(ours, arguments(), methods=[BitFit()], train_dataset=DATA).train()
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_(trained_in_bert(name))
    by_hand(theirs, parameters=[one for one in theirs.parameters() if one.requires_grad])
    assert_same_weights(ours, theirs, tolerance=1e-10)
    assert all(parameter.requires_grad for parameter in ours.parameters())
    for (name, own), old in zip(ours.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(own, old) is not trained_in_bert(name), name


@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "distilbert"])
def test_what_is_trained_on_other_architectures(name: str) -> None:
    parts = components(_models.ALL[name]())
    (phase,) = BitFit().phases(parts)
    assert phase.epochs is None
    for part in parts:
        wanted = part.name.endswith("bias") or part.name.startswith("classifier")
        assert phase.trainable(part) is wanted, part.name


def test_the_clipping_is_of_what_is_trained(arguments: Arguments) -> None:
    trainer = MethodTrainer(_models.bert(), arguments(), methods=["bitfit", "component-clip"], train_dataset=DATA)
    trainer.train()
    assert trainer.last_clip is not None
    assert set(trainer.last_clip.names) == {
        name for name, _ in _models.bert().named_parameters() if trained_in_bert(name)
    }


def test_models_without_biases_are_refused(arguments: Arguments) -> None:
    only_in_its_head = nn.ModuleDict({"body": nn.Linear(2, 2, bias=False), "classifier": nn.Linear(2, 2)})
    with pytest.raises(MethodError, match="this model has none but in its head; use head-only, or lora"):
        BitFit().phases(components(only_in_its_head))
    with pytest.raises(MethodError, match="bitfit trains biases"):
        MethodTrainer(_models.llama(), arguments(), methods=["bitfit"], train_dataset=DATA)


@pytest.mark.parametrize("other", ["head-only", "gradual-unfreezing", "lora", "reinit"])
def test_what_freezes_is_no_company(other: str) -> None:
    with pytest.raises(MethodError, match="cannot be mixed"):
        parse_mix(f"bitfit+{other}")


class TestBitFitContract(MethodContract):
    refused = {"llama": "bitfit trains biases", "modernbert": "bitfit trains biases"}  # noqa: RUF012  as the suite's own

    def make(self) -> Method:
        return BitFit()
