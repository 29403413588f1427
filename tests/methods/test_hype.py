from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests import _models
from tests.integrations._training import DATA, assert_same_weights
from tests.methods._by_hand import by_hand, rows
from tests.methods._passes import DROPOUT, SEED, hooks, labels
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainingArguments

from evenkeel import components
from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import Method, Moment, Setting
from evenkeel.methods.hype import HyPe
from evenkeel.testing import MethodContract
from evenkeel.testing._tiny import classifier

Arguments = Callable[..., TrainingArguments]
IDS = _models.Rows(2).ids


def setting(model: nn.Module) -> Setting:
    return Setting(model=model, parts=components(model), problem="classification")


def draw(noise: str, like: Tensor, generator: torch.Generator) -> Tensor:
    if noise == "normal":
        return torch.empty_like(like).normal_(0, 0.2, generator=generator)
    return torch.empty_like(like).uniform_(-0.2, 0.2, generator=generator)


@pytest.mark.parametrize("noise", ["normal", "uniform"])
def test_it_trains_without_dropout_on_noisy_hidden_states(arguments: Arguments, noise: Any) -> None:
    ours, theirs = _models.bert(**DROPOUT).double(), _models.bert().double()
    MethodTrainer(ours, arguments(), methods=[HyPe(scale=0.2, noise=noise)], train_dataset=DATA).train()

    def loss(model: nn.Module, step: int) -> Tensor:
        generator = Moment(step=step, seed=SEED).generator("hype")
        states = model.bert.embeddings(rows(step))  # type: ignore[union-attr,operator]
        for layer in model.bert.encoder.layer:  # type: ignore[union-attr]
            states = layer(states + draw(noise, states, generator))
            states = states if isinstance(states, Tensor) else states[0]
        return F.cross_entropy(model.classifier(model.bert.pooler(states)), labels(step))  # type: ignore[operator,union-attr]

    by_hand(theirs, loss=loss)
    assert_same_weights(ours, theirs, tolerance=1e-10)


def test_there_is_no_noise_in_evaluation() -> None:
    model = _models.bert(**DROPOUT).eval()
    plain = model(input_ids=IDS).logits
    session = HyPe(scale=0.5).begin(setting(model))
    session.before_forward(Moment(step=0))
    assert torch.equal(model(input_ids=IDS).logits, plain)
    model.train()
    one, other = model(input_ids=IDS).logits, model(input_ids=IDS).logits
    assert not torch.equal(one, plain)
    assert not torch.equal(one, other)  # drawn anew in each pass
    session.before_forward(Moment(step=0))
    assert torch.equal(model(input_ids=IDS).logits, one)


def test_dropout_is_off_until_the_session_is_closed() -> None:
    model = _models.bert(**DROPOUT).train()
    before = torch.get_rng_state()
    session = HyPe(scale=0).begin(setting(model))
    assert torch.equal(model(input_ids=IDS).logits, model(input_ids=IDS).logits)
    assert torch.equal(torch.get_rng_state(), before)
    assert hooks(model) == 0
    session.close()
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.3}


def test_a_block_that_is_all_layers_has_noise_before_each_of_them() -> None:
    model = classifier("albert")
    session = HyPe(scale=0.1).begin(setting(model))
    block = model.albert.encoder.albert_layer_groups[0].albert_layers[0]
    given: list[Tensor] = []
    handle = block.register_forward_pre_hook(lambda _, args: given.append(args[0].detach()))
    session.before_forward(Moment(step=0))
    model.train()(input_ids=IDS)
    handle.remove()
    model.eval()
    generator, states = Moment(step=0).generator("hype"), []
    states.append(model.albert.encoder.embedding_hidden_mapping_in(model.albert.embeddings(IDS)))
    for noisy in given:
        clean = states[-1]
        torch.testing.assert_close(noisy, clean + 0.1 * torch.empty_like(clean).normal_(generator=generator))
        output = block(noisy)
        states.append(output if isinstance(output, Tensor) else output[0])
    assert len(given) == 3
    session.close()
    assert hooks(model) == 0


class ByName(nn.Module):
    """A model whose blocks are given hidden states by name, and return them in a tuple."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, mask: object = None, *, hidden_states: Tensor) -> tuple[Tensor, object]:
            return self.linear(hidden_states), mask

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([ByName.Layer(), ByName.Layer()])

    def forward(self, states: Tensor) -> Tensor:
        for layer in self.layers:
            states, _ = layer(hidden_states=states, mask="mask")
        return states


def test_hidden_states_may_be_given_by_name() -> None:
    model, states = ByName(), torch.ones(1, 3, 2)
    plain = model(states)
    session = HyPe(scale=0.5).begin(setting(model))
    session.before_forward(Moment(step=0))
    assert not torch.equal(model(states), plain)
    session.close()
    assert torch.equal(model(states), plain)


# --- what cannot be


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "much", None, True])
def test_bad_numbers_are_refused(value: Any) -> None:
    with pytest.raises(MethodError, match=r"hype: scale must be a .*number from 0, but got"):
        HyPe(scale=value)


def test_unknown_noise_is_refused() -> None:
    with pytest.raises(MethodError, match=r"unknown noise of hype .*Known: normal, uniform"):
        HyPe(noise="gauss")  # type: ignore[arg-type]


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(MethodError, match="hype adds noise before each block, and this model has no blocks; use"):
        HyPe().check(setting(nn.Linear(2, 2)))


class TestHyPeContract(MethodContract):
    adds_up = False

    def make(self) -> Method:
        return HyPe(scale=0.1)

    def neutral(self) -> Method:
        return HyPe(scale=0.0)
