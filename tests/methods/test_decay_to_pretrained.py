from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import _models
from tests.integrations._training import DATA, RATE, assert_same_weights
from tests.methods._by_hand import STEPS, by_hand
from torch import Tensor, nn
from transformers import TrainingArguments

from evenkeel import components
from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import Method, Moment, Setting, Step
from evenkeel.methods.decay_to_pretrained import DecayToPretrained
from evenkeel.testing import MethodContract

Arguments = Callable[..., TrainingArguments]


def test_it_is_the_formula_before_each_step_of_adamw(arguments: Arguments) -> None:
    ours, theirs = _models.bert().double(), _models.bert().double()
    args = arguments(weight_decay=0.1, lr_scheduler_type="linear")  # the rate changes, and the decay goes
    MethodTrainer(ours, args, methods=[DecayToPretrained(strength=3.0)], train_dataset=DATA).train()
    start = {name: one.detach().clone() for name, one in theirs.named_parameters()}

    def rate(step: int) -> float:
        return RATE * (1 - step / STEPS)

    def pull(step: int) -> None:
        for name, one in theirs.named_parameters():
            if not name.startswith("classifier"):
                one.sub_(rate(step) * 3.0 * (one - start[name]))

    by_hand(theirs, rate=rate, before_step=pull)
    assert_same_weights(ours, theirs, tolerance=1e-10)


class TwoLayers(nn.Module):
    """A block, a head, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
        self.classifier = nn.Linear(2, 2, bias=False)


def step_of(model: nn.Module, groups: list[dict[str, Any]], step: int = 0) -> Step:
    return Step(moment=Moment(step=step), total=10, parts=components(model), optimizer=torch.optim.SGD(groups, lr=0.0))


def moved(model: TwoLayers, groups: list[dict[str, Any]], **setting: Any) -> list[Tensor]:
    """Begin, move all weights by 1, pull, and say how far each layer was pulled back."""
    session = DecayToPretrained(strength=0.5).begin(Setting(model=model, parts=components(model), **setting))
    session.start()
    weights = [model.layers[0].weight, model.layers[1].weight, model.classifier.weight]
    with torch.no_grad():
        for weight in weights:
            weight.add_(1.0)
    before = [weight.detach().clone() for weight in weights]
    session.before_step(step_of(model, groups))
    return [one - weight for one, weight in zip(before, weights, strict=True)]


def with_gradients(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return model


@pytest.mark.parametrize(("problem", "head"), [("classification", 0.0), ("causal-lm", 0.1)])
def test_each_weight_is_pulled_by_its_own_rate_and_a_new_head_is_not(problem: str, head: float) -> None:
    model = TwoLayers()
    with_gradients(model)
    groups = [
        {"params": [model.layers[1].weight, model.classifier.weight], "lr": 0.2},
        {"params": [model.layers[0].weight], "lr": 0.4},
    ]
    found = moved(model, groups, problem=problem)
    for distance, expected in zip(found, (0.2, 0.1, head), strict=True):
        torch.testing.assert_close(distance, torch.full((2, 2), expected))


def test_what_has_no_gradient_or_is_frozen_stays() -> None:
    model = TwoLayers()
    with_gradients(model)
    model.layers[0].weight.grad = None
    groups = [{"params": list(model.parameters()), "lr": 0.2}]
    model.layers[1].weight.requires_grad_(False)
    assert [distance.abs().max().item() for distance in moved(model, groups)] == [0.0, 0.0, 0.0]


def test_weights_are_kept_where_the_training_starts_and_come_back_from_a_checkpoint(tmp_path: Path) -> None:
    model = TwoLayers()
    setting = Setting(model=model, parts=components(model))
    session = DecayToPretrained().begin(setting)
    with torch.no_grad():
        model.layers[0].weight.fill_(7.0)  # between begin and start, as by another method
    session.start()
    torch.save(session.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert set(state["start"]) == {"layers.0.weight", "layers.1.weight"}
    assert state["start"]["layers.0.weight"].eq(7.0).all()
    again = DecayToPretrained(strength=1.0).begin(setting)
    again.load_state_dict(state)
    with_gradients(model)
    with torch.no_grad():
        model.layers[0].weight.fill_(8.0)
    again.before_step(step_of(model, [{"params": list(model.parameters()), "lr": 1.0}]))
    assert model.layers[0].weight.eq(7.0).all()


def test_a_checkpoint_of_other_parameters_is_refused() -> None:
    model = TwoLayers()
    session = DecayToPretrained().begin(Setting(model=model, parts=components(model)))
    start = {name: torch.zeros(2, 2) for name in ("layers.0.weight", "layers.1.weight", "layers.2.weight")}
    with pytest.raises(MethodError, match=r"keeps 'layers.2.weight' \(1 such in all\).*resume with the same model"):
        session.load_state_dict({"start": start})
    with pytest.raises(MethodError, match=r"keeps nothing for 'layers.0.weight' \(1 such in all\)"):
        session.load_state_dict({"start": {"layers.1.weight": torch.zeros(2, 2)}})


def test_a_training_of_the_head_alone_is_refused(arguments: Arguments) -> None:
    model = _models.bert()
    model.bert.requires_grad_(False)
    with pytest.raises(MethodError, match="nothing but the head is trained"):
        MethodTrainer(model, arguments(), methods=[DecayToPretrained()], train_dataset=DATA)


@pytest.mark.parametrize("strength", [-1e-3, math.nan, math.inf, True, "1", None, [1.0]])
def test_strength_is_a_number_from_0(strength: Any) -> None:
    with pytest.raises(MethodError, match=r"strength must be a .*number from 0, but got .*1e-3"):
        DecayToPretrained(strength=strength)


class TestDecayToPretrainedContract(MethodContract):
    def make(self) -> Method:
        return DecayToPretrained(strength=5.0)

    def neutral(self) -> Method:
        return DecayToPretrained(strength=0.0)
