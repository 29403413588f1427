from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from tests import _models
from tests.integrations._training import DATA, RATE, assert_same_weights
from tests.methods._by_hand import STEPS, by_hand
from transformers import TrainingArguments

from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import Method, Mix, Recipe, parse_method, parse_mix
from evenkeel.methods.warmup import Warmup
from evenkeel.testing import MethodContract

Arguments = Callable[..., TrainingArguments]


def factor(step: int, steps: int, share: float) -> float:
    """What the peak rate is multiplied by, from the formula."""
    rising = math.ceil(share * steps)
    return step / rising if step < rising else (steps - step) / (steps - rising)


@pytest.mark.parametrize("share", [0, 0.1, 0.5])
def test_the_rate_rises_and_falls_as_in_the_formula(arguments: Arguments, share: float) -> None:
    ours, theirs = _models.bert().double(), _models.bert().double()
    args = arguments(logging_steps=1, warmup_steps=3, lr_scheduler_type="cosine")  # which the method replaces
    trainer = MethodTrainer(ours, args, methods=[Warmup(share=share)], train_dataset=DATA)
    trainer.train()
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    wanted = [RATE * factor(step, STEPS, share) for step in range(STEPS)]
    assert logged == pytest.approx(wanted)
    by_hand(theirs, rate=wanted.__getitem__)
    assert_same_weights(ours, theirs, tolerance=1e-10)


def test_phases_that_start_anew_are_warmed_up_anew(arguments: Arguments) -> None:
    args = arguments(logging_steps=1)
    trainer = MethodTrainer(
        _models.bert(2), args, methods=["gradual-unfreezing", Warmup(share=0.4)], train_dataset=DATA
    )
    trainer.train()
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert logged == pytest.approx([RATE * factor(step, STEPS, 0.4) for step in range(STEPS)] * 2)


@pytest.mark.parametrize("share", [1, 1.5, -0.1, math.nan, math.inf, True, "0.1", None, [0.1]])
def test_shares_lie_below_one(share: Any) -> None:
    with pytest.raises(MethodError, match=r"warmup: share must be a number from 0 to below 1, but got .*; 0\.1 is"):
        Warmup(share=share)


def test_it_lays_down_nothing_else() -> None:
    assert Warmup().recipe() == Recipe(warmup=0.1, schedule="linear")
    assert parse_method("warmup:share=0.06") == Warmup(share=0.06)
    assert not Mix([Warmup()]).acting
    with pytest.raises(MethodError, match=r"each lays down the training's schedule and warmup"):
        parse_mix("warmup+mosbach")


class TestWarmupContract(MethodContract):
    def make(self) -> Method:
        return Warmup(share=0.5)

    def neutral(self) -> Method:
        return Warmup(share=0)
