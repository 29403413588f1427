from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests import _models
from tests.integrations._training import DATA, assert_same_weights
from tests.methods._by_hand import by_hand
from transformers import TrainingArguments

from evenkeel import components
from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import Method, Setting, parse_method, parse_mix
from evenkeel.methods.head_only import HeadOnly
from evenkeel.testing import MethodContract
from evenkeel.testing._tiny import language_model

Arguments = Callable[..., TrainingArguments]


@pytest.mark.parametrize(
    ("pooler", "trained"), [(True, ("classifier.", "bert.pooler.")), (False, ("classifier.",))], ids=["pooler", "head"]
)
def test_it_is_the_training_of_a_frozen_model_by_hand(
    arguments: Arguments, pooler: bool, trained: tuple[str, ...]
) -> None:
    ours, theirs, before = (_models.bert().double() for _ in range(3))
    MethodTrainer(ours, arguments(), methods=[HeadOnly(pooler=pooler)], train_dataset=DATA).train()
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    by_hand(theirs, parameters=[one for one in theirs.parameters() if one.requires_grad])
    assert_same_weights(ours, theirs, tolerance=1e-10)
    assert all(parameter.requires_grad for parameter in ours.parameters())
    for (name, own), old in zip(ours.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(own, old) is not name.startswith(trained), name


@pytest.mark.parametrize("name", ["roberta", "electra", "llama"])
def test_without_a_pooler_both_are_the_head(name: str) -> None:
    parts = components(_models.ALL[name]())
    for pooler in (True, False):
        (phase,) = HeadOnly(pooler=pooler).phases(parts)
        trained = {part.name for part in parts if phase.trainable(part)}
        assert trained == {part.name for part in parts if part.name.startswith(("classifier", "score"))}


def test_a_head_that_is_tied_to_the_embeddings_is_none() -> None:
    model = language_model("gpt2")
    with pytest.raises(MethodError, match="this model has none with weights of its own"):
        HeadOnly().check(Setting(model=model, parts=components(model), problem="causal-lm"))
    own = language_model("llama")
    HeadOnly().check(Setting(model=own, parts=components(own), problem="causal-lm"))


@pytest.mark.parametrize("bad", [None, 0, 1, "no"])
def test_pooler_is_true_or_false(bad: Any) -> None:
    with pytest.raises(MethodError, match=r"head-only: pooler must be true or false, but got .*; false trains"):
        HeadOnly(pooler=bad)
    assert parse_method("head-only:pooler=no") == HeadOnly(pooler=False)  # YAML's no


@pytest.mark.parametrize("other", ["bitfit", "gradual-unfreezing", "lora", "reinit"])
def test_what_freezes_is_no_company(other: str) -> None:
    with pytest.raises(MethodError, match="cannot be mixed"):
        parse_mix(f"head-only+{other}")


class TestHeadOnlyContract(MethodContract):
    causal = ("llama",)  # GPT-2's head is tied to its embeddings

    def make(self) -> Method:
        return HeadOnly()
