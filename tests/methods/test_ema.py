"""The moving average by its formula; what it has in common with SWA is tested there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import _models
from tests.integrations._training import DATA, After, weights
from torch import Tensor, nn
from transformers import TrainingArguments

from evenkeel import components
from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import Method, Moment, Setting, Step
from evenkeel.methods.ema import ExponentialMovingAverage
from evenkeel.testing import MethodContract

Arguments = Callable[..., TrainingArguments]


def expected(values: list[Tensor], decay: float) -> Tensor:
    """The sum of the formula, divided by the sum of its shares."""
    shares = [decay**age for age in range(len(values))][::-1]
    return sum((share * value for share, value in zip(shares, values, strict=True)), torch.zeros(())) / sum(shares)


@pytest.mark.parametrize("decay", [0.9, 0.3, 0.0])
def test_the_result_is_the_average_by_the_formula(arguments: Arguments, decay: float) -> None:
    model, seen = _models.bert(), []
    keep = After(lambda model, optimizer, step: seen.append(weights(model).double()))
    methods = [ExponentialMovingAverage(decay=decay)]
    MethodTrainer(model, arguments(), methods=methods, train_dataset=DATA, callbacks=[keep]).train()
    torch.testing.assert_close(weights(model).double(), expected(seen, decay), rtol=0.0, atol=1e-6)


@given(decay=st.floats(0.0, 0.9999), values=st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=20))
def test_it_is_the_formula_at_every_length(decay: float, values: list[float]) -> None:
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    parts, optimizer = components(model), torch.optim.SGD(model.parameters(), lr=1.0)
    session = ExponentialMovingAverage(decay=decay).begin(Setting(model=model, parts=parts))
    for step, value in enumerate(values):
        nn.init.constant_(model.weight, value)
        session.after_step(Step(moment=Moment(step=step), total=20, parts=parts, optimizer=optimizer))
    session.finish()
    wanted = expected([torch.tensor(value, dtype=torch.float64) for value in values], decay)
    assert model.weight.item() == pytest.approx(wanted.item(), abs=1e-11)


@pytest.mark.parametrize("decay", [-0.1, 1, 1.1, math.nan, math.inf, True, "0.9", None, [0.9]])
def test_decay_is_below_1(decay: Any) -> None:
    with pytest.raises(MethodError, match=r"decay must be a .*number from 0 to below 1, but got .*0\.999"):
        ExponentialMovingAverage(decay=decay)


class TestExponentialMovingAverageContract(MethodContract):
    def make(self) -> Method:
        return ExponentialMovingAverage(decay=0.7)

    def neutral(self) -> Method:
        return ExponentialMovingAverage(decay=0.0)
