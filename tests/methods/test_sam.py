from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests import _models
from tests.integrations._training import BATCH, DATA, Before, assert_same_weights, mean_over_all, weights
from tests.methods._by_hand import by_hand, loss_of
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from evenkeel import components
from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import Method, Moment, Setting, Step
from evenkeel.methods.sam import SharpnessAwareMinimization
from evenkeel.testing import MethodContract

Arguments = Callable[..., TrainingArguments]
SAM = SharpnessAwareMinimization


def trained_by_hand(rho: float, scale: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """Train with gradients from the worst weights nearby; ``scale`` is the diagonal of T."""
    model = _models.bert().double()

    def ascend_and_look(step: int) -> None:
        named = {name: one for name, one in model.named_parameters() if one.grad is not None}
        before = {name: one.detach().clone() for name, one in named.items()}
        size = {name: scale(name, one.detach()) for name, one in named.items()}
        norm = math.sqrt(sum(((size[name] * one.grad) ** 2).sum().item() for name, one in named.items()))
        with torch.no_grad():
            for name, one in named.items():
                one.add_(rho * size[name] ** 2 * one.grad / norm)
        model.zero_grad()
        loss_of(model, step).backward()
        with torch.no_grad():
            for name, one in named.items():
                one.copy_(before[name])

    by_hand(model, before_clipping=ascend_and_look)
    return model


def asam(name: str, weight: Tensor, eta: float = 0.01) -> Tensor:
    return weight.abs() + eta if name.endswith("weight") else torch.ones_like(weight)


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({"rho": 0.3}, lambda name, weight: torch.ones_like(weight)),
        ({"rho": 0.5, "adaptive": True}, asam),
        ({"rho": 0.5, "adaptive": True, "eta": 0.0}, lambda name, weight: asam(name, weight, eta=0.0)),
    ],
    ids=["sam", "asam", "asam without eta"],
)
@pytest.mark.parametrize("accumulated", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_it_is_the_formula(
    arguments: Arguments, options: dict[str, Any], scale: Callable[[str, Tensor], Tensor], accumulated: int
) -> None:
    model = _models.bert().double()
    args = arguments(gradient_accumulation_steps=accumulated, per_device_train_batch_size=BATCH // accumulated)
    more: dict[str, Any] = {"train_dataset": DATA, "compute_loss_func": mean_over_all}
    MethodTrainer(model, args, methods=[SAM(**options)], **more).train()
    assert_same_weights(model, trained_by_hand(options["rho"], scale), tolerance=1e-9)


class Begins(TrainerCallback):
    """Keeps the weights at the beginning of each step."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.seen.append(weights(kwargs["model"]))


def test_weights_come_back_bit_for_bit(arguments: Arguments) -> None:
    begins, stepping = Begins(), []
    keep = Before(lambda model, optimizer, step: stepping.append(weights(model)))
    methods = [SAM(rho=0.7)]
    MethodTrainer(_models.bert(), arguments(), methods=methods, train_dataset=DATA, callbacks=[begins, keep]).train()
    assert all(map(torch.equal, begins.seen, stepping))


def test_weights_come_back_when_the_second_pass_fails(arguments: Arguments) -> None:
    model, before, passes = _models.bert(), weights(_models.bert()), []

    def fail(*_: Any) -> None:
        passes.append(not torch.equal(weights(model), before))
        if len(passes) == 2:
            raise ZeroDivisionError

    model.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        MethodTrainer(model, arguments(), methods=[SAM()], train_dataset=DATA).train()
    assert passes == [False, True]
    assert torch.equal(weights(model), before)


def ascended(model: nn.Module, **options: Any) -> None:
    parts = components(model)
    session = SAM(**options).begin(Setting(model=model, parts=parts))
    session.ascend(
        Step(moment=Moment(step=0), total=1, parts=parts, optimizer=torch.optim.SGD(model.parameters(), lr=1.0))
    )


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_gradient_of_0_leads_nowhere(adaptive: bool) -> None:
    model = nn.Linear(3, 2)
    before = weights(model)
    ascended(model, rho=1.0)  # no gradient at all
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    ascended(model, rho=1.0, adaptive=adaptive)
    assert torch.equal(weights(model), before)


def test_the_norm_of_narrow_gradients_is_taken_in_float32() -> None:
    model = nn.Linear(258, 1, bias=False, dtype=torch.bfloat16)
    nn.init.zeros_(model.weight)
    model.weight.grad = torch.ones_like(model.weight)
    ascended(model, rho=1.5 * math.sqrt(258))  # 16.06, which in bfloat16 would be 16
    assert model.weight[0, 0].item() == 1.5


def test_an_fp16_loss_scale_does_not_allow_it(arguments: Arguments) -> None:
    args = arguments()
    args.fp16 = True  # a Trainer refuses it on a CPU later on
    with pytest.raises(MethodError, match="sam takes gradients twice"):
        MethodTrainer(_models.bert(), args, methods=[SAM()], train_dataset=DATA)


@pytest.mark.parametrize("option", ["rho", "eta"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, True, "0.05", None, [0.05]])
def test_distances_are_numbers_from_0(option: str, value: Any) -> None:
    with pytest.raises(MethodError, match=rf"{option} must be a .*number from 0, but got .*0\.0"):
        SAM(**{option: value})


@pytest.mark.parametrize("value", [1, "yes", None])
def test_adaptive_is_true_or_false(value: Any) -> None:
    with pytest.raises(MethodError, match="adaptive must be true or false"):
        SAM(adaptive=value)


class TestSharpnessAwareMinimizationContract(MethodContract):
    def make(self) -> Method:
        return SAM(rho=0.5)

    def neutral(self) -> Method:
        return SAM(rho=0.0)
