from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests import _models
from tests.integrations._training import DATA, EPSILON, RATE, assert_same_weights
from tests.methods._by_hand import STEPS, loss_of
from torch import Tensor, nn
from transformers import TrainingArguments

from evenkeel import components
from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import ComponentClipping, FullFineTuning, Method, Mix, Recipe
from evenkeel.methods.stable_adamw import StableUpdate
from evenkeel.optim import StableAdamW
from evenkeel.testing import MethodContract

Arguments = Callable[..., TrainingArguments]
BETAS = {"adam_beta1": 0.8, "adam_beta2": 0.9}


def trainer_of(model: nn.Module, args: TrainingArguments, *methods: Method, **more: Any) -> MethodTrainer:
    trainer = MethodTrainer(model, args, methods=list(methods or [StableUpdate()]), train_dataset=DATA, **more)
    trainer.train()
    return trainer


def by_formula(model: nn.Module, *, weight_decay: float) -> tuple[float, float]:
    """Train by algorithm 2 without any clipping, and return the largest R and the largest norm of a gradient."""
    model.train()
    named = dict(model.named_parameters())
    means, squares = [{name: torch.zeros_like(one) for name, one in named.items()} for _ in range(2)]
    largest = norm = 0.0
    for step in range(1, STEPS + 1):
        model.zero_grad()
        loss_of(model, step - 1).backward()
        norm = max(norm, nn.utils.get_total_norm([one.grad for one in named.values() if one.grad is not None]).item())
        with torch.no_grad():
            for name, one in named.items():
                if one.grad is None:
                    continue
                mean, square = means[name], squares[name]
                mean.copy_(0.8 * mean + 0.2 * one.grad)
                square.copy_(0.9 * square + 0.1 * one.grad**2)
                first, second = mean / (1 - 0.8**step), square / (1 - 0.9**step)
                ratio = (one.grad**2 / second.clamp(min=EPSILON**2)).mean().sqrt().item()
                largest = max(largest, ratio)
                rate = RATE / max(1.0, ratio)
                decay = 0.0 if name.endswith("bias") or "Norm" in name else weight_decay
                one.sub_(rate * decay * one + rate * first / (second.sqrt() + EPSILON))
    return largest, norm


def test_it_is_the_papers_algorithm_without_clipping(arguments: Arguments) -> None:
    ours, theirs = _models.bert().double(), _models.bert().double()
    trainer_of(ours, arguments(weight_decay=0.1, **BETAS))
    ratio, norm = by_formula(theirs, weight_decay=0.1)
    assert ratio > 1.1  # some tensor gave way
    assert norm > 1.1  # full would have clipped
    assert_same_weights(ours, theirs, tolerance=1e-9)


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_a_method_that_clips_decides_clipping(arguments: Arguments, order: slice) -> None:
    both = [StableUpdate(), ComponentClipping(max_norm=0.01)][order]
    trainer = trainer_of(_models.bert(), arguments(), *both)
    assert isinstance(trainer.optimizer.optimizer, StableAdamW)  # in Accelerate's wrapper
    assert trainer.last_clip is not None
    torch.testing.assert_close(trainer.last_clip.thresholds, torch.full_like(trainer.last_clip.thresholds, 0.01))
    parts = components(_models.bert())
    assert Mix((StableUpdate(),)).clipping(parts).max_norm == math.inf
    assert Mix((StableUpdate(), FullFineTuning(max_norm=3.0))[order]).clipping(parts).max_norm == 3.0


def test_groups_and_settings_are_those_of_the_training() -> None:
    one, other = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    groups = [{"params": [one], "lr": 0.3, "weight_decay": 0.5}, {"params": [other], "eps": 1e-4}]
    plain = torch.optim.AdamW(groups, lr=0.1, betas=(0.5, 0.6), weight_decay=0.2, fused=True)
    made = StableUpdate().optimizer(plain)
    assert isinstance(made, StableAdamW)
    found = [
        (group["params"], group["lr"], group["betas"], group["eps"], group["weight_decay"])
        for group in made.param_groups
    ]
    assert found == [([one], 0.3, (0.5, 0.6), 1e-8, 0.5), ([other], 0.1, (0.5, 0.6), 1e-4, 0.2)]
    assert made.defaults["lr"] == 0.1
    assert "fused" not in made.param_groups[0]


def test_stepping_in_backward_gives_the_same_weights(arguments: Arguments) -> None:
    plain, model = _models.bert(), _models.bert()
    trainer_of(plain, arguments(**BETAS))
    trainer_of(model, arguments(**BETAS), in_backward=True)
    assert_same_weights(model, plain, tolerance=0.0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (torch.optim.SGD, "this training has SGD; set TrainingArguments"),
        (lambda parameters: torch.optim.AdamW(parameters, amsgrad=True), "this training has AdamW with it; set"),
    ],
)
def test_it_takes_the_place_of_adamw_alone(make: Callable[[list[Tensor]], Any], said: str) -> None:
    with pytest.raises(MethodError, match=said):
        StableUpdate().optimizer(make([nn.Parameter(torch.zeros(1))]))


def test_another_optimizer_beside_it_is_refused(arguments: Arguments) -> None:
    with pytest.raises(MethodError, match="brings an optimizer of its own"):
        trainer_of(_models.bert(), arguments(), optimizer="clipped-adamw")


class Uncorrected(Method):
    name, summary, source = "uncorrected", "Adam as it was", "nowhere"

    def recipe(self) -> Recipe:
        return Recipe(correct_bias=False)


def test_adam_without_bias_correction_is_another_update() -> None:
    for methods in ((Uncorrected(), StableUpdate()), (StableUpdate(), Uncorrected())):
        with pytest.raises(MethodError, match="each decides how the optimizer updates weights"):
            Mix(methods)


class TestStableUpdateContract(MethodContract):
    def make(self) -> Method:
        return StableUpdate()
