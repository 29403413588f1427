from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import _models
from tests.integrations._training import DATA, assert_same_weights
from tests.methods._by_hand import by_hand
from torch import Tensor, nn
from transformers import TrainingArguments

from evenkeel import components
from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import Method, Moment, Setting, Step
from evenkeel.methods.child_tuning_f import ChildTuningF
from evenkeel.testing import MethodContract

Arguments = Callable[..., TrainingArguments]


def masked(gradient: Tensor, share: float, moment: Moment) -> Tensor:
    """What becomes of the gradient of a model of one weight."""
    model = nn.Linear(gradient.shape[1], gradient.shape[0], bias=False, dtype=gradient.dtype)
    model.weight.grad = gradient.clone()
    parts = components(model)
    session = ChildTuningF(p=share).begin(Setting(model=model, parts=parts))
    session.before_step(
        Step(moment=moment, total=9, parts=parts, optimizer=torch.optim.SGD(model.parameters(), lr=1.0))
    )
    return model.weight.grad


def test_it_masks_clipped_gradients_before_adam(arguments: Arguments) -> None:
    ours, theirs = _models.bert().double(), _models.bert().double()
    args = arguments(weight_decay=0.1)
    MethodTrainer(ours, args, methods=[ChildTuningF(p=0.4)], train_dataset=DATA).train()

    def mask(step: int) -> None:
        generator = Moment(step=step, seed=args.seed).generator("child-tuning-f", alike=True)
        named = dict(theirs.named_parameters())
        plain = [name for name in named if name.endswith("bias") or "Norm" in name]
        for name in [*(name for name in named if name not in plain), *plain]:  # in the order of a Trainer's optimizer
            kept = torch.empty_like(named[name]).bernoulli_(0.4, generator=generator).bool()
            named[name].grad = torch.where(kept, named[name].grad / 0.4, 0.0)

    by_hand(theirs, weight_decay=0.1, before_step=mask)
    assert_same_weights(ours, theirs, tolerance=1e-10)


@given(rows=st.integers(1, 5), columns=st.integers(1, 5), share=st.floats(0.05, 1), step=st.integers(0, 10**6))
def test_an_entry_is_enlarged_or_gone(rows: int, columns: int, share: float, step: int) -> None:
    gradient = torch.linspace(1.0, 2.0, rows * columns, dtype=torch.float64).view(rows, columns)
    found = masked(gradient, share, Moment(step=step))
    kept = found != 0
    torch.testing.assert_close(found[kept], gradient[kept] / share)


def test_the_gradient_is_the_same_in_expectation() -> None:
    gradient = torch.linspace(-1.0, 1.0, 12).view(3, 4)
    mean = torch.stack([masked(gradient, 0.25, Moment(step=step)) for step in range(2000)]).mean(dim=0)
    # The standard error of an entry is g * sqrt((1 - p) / p / 2000), 0.04 at most.
    torch.testing.assert_close(mean, gradient, rtol=0.0, atol=0.16)


def test_a_mask_is_new_in_each_step_and_alike_on_every_rank() -> None:
    gradient = torch.ones(20, 20)
    first = masked(gradient, 0.5, Moment(step=3, seed=1))
    assert torch.equal(first, masked(gradient, 0.5, Moment(step=3, seed=1, rank=1)))
    assert not torch.equal(first, masked(gradient, 0.5, Moment(step=4, seed=1)))
    assert not torch.equal(first, masked(gradient, 0.5, Moment(step=3, seed=2)))


@pytest.mark.parametrize("share", [0, -0.1, 1.1, math.nan, math.inf, True, "0.3", None, [0.3]])
def test_p_is_a_share(share: Any) -> None:
    with pytest.raises(MethodError, match=r"p must be a .*number above 0 to 1, but got .*0\.2, 0\.3 and 0\.4"):
        ChildTuningF(p=share)


def test_stepping_in_backward_leaves_no_time_for_it(arguments: Arguments) -> None:
    with pytest.raises(MethodError, match="child-tuning-f changes gradients between backward"):
        MethodTrainer(_models.bert(), arguments(), methods=[ChildTuningF()], train_dataset=DATA, in_backward=True)


class TestChildTuningFContract(MethodContract):
    def make(self) -> Method:
        return ChildTuningF(p=0.5)

    def neutral(self) -> Method:
        return ChildTuningF(p=1.0)
