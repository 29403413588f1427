"""Steps of ClippedAdamW that are limited by the weights, against the formula in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests.optim import _runs
from tests.optim._limited_by_hand import LimitedByHand
from torch import nn

from evenkeel import clip_grad_norm_, components
from evenkeel.clipping import cpu
from evenkeel.optim import ClippedAdamW, UpdateLimit
from evenkeel.partition import Components

RATE, EPSILON = 1e-2, 1e-3
WAYS = [True, pytest.param(False, marks=pytest.mark.slow)]


@pytest.fixture(params=WAYS, ids=["kernels", "torch"], scope="module", autouse=True)
def kernels(request: pytest.FixtureRequest) -> Iterator[bool]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "available", lambda: request.param)
        yield request.param


def share_of(parts: Components, max_update: Any) -> Callable[[str], float]:
    """The limit of the component that a parameter's name belongs to, for numbers and for one role."""
    if not isinstance(max_update, dict):
        return lambda name: float(max_update)
    return lambda name: max_update["query"] if ".query." in name else max_update["*"]


def members_of(parts: Components) -> list[list[str]]:
    return [[piece.name for piece in part.pieces] for part in parts]


def bare(name: str) -> bool:
    return name.endswith("bias")


def groups_of(model: nn.Module, decay: float, rate_of_biases: float) -> list[dict[str, Any]]:
    named = list(model.named_parameters())
    return [
        {"params": [one for name, one in named if not bare(name)], "weight_decay": decay},
        {"params": [one for name, one in named if bare(name)], "weight_decay": 0.0, "lr": rate_of_biases},
    ]


def step_both(
    make: Callable[[], nn.Module],
    max_update: Any,
    by: Any,
    steps: int,
    *,
    max_norm: float = math.inf,
    decay: float = 0.3,
    rate_of_biases: float = 3 * RATE,
    dtype: torch.dtype = torch.float64,
    micro: int = 1,
    **options: Any,
) -> tuple[nn.Module, nn.Module, list[list[float]], ClippedAdamW]:
    """Train a model, and its twin by hand."""
    ours, theirs = make().to(dtype), make().double()
    parts, others = components(ours, by), components(theirs, by)
    mine = ClippedAdamW(
        groups_of(ours, decay, rate_of_biases),
        lr=RATE,
        eps=EPSILON,
        parts=parts,
        max_norm=max_norm,
        max_update=max_update,
        **options,
    )
    number = max_update.max_update if isinstance(max_update, UpdateLimit) else max_update
    hand = LimitedByHand(
        theirs,
        share=share_of(others, number),
        members=members_of(others),
        rate=RATE,
        eps=EPSILON,
        decay=lambda name: 0.0 if bare(name) else decay,
        floor=max_update.floor if isinstance(max_update, UpdateLimit) else 1e-3,
    )
    seen: list[list[float]] = []
    for step, batch in enumerate(_runs.batches(ours, steps * micro)):
        for model in (ours, theirs):
            _runs.backward(model, batch)
        if step % micro < micro - 1:
            continue
        clip_grad_norm_(others, max_norm)
        mine.step()
        hand.step(lambda name: rate_of_biases if bare(name) else RATE)
        seen.append(hand.coefficients)
        assert mine.last_update is not None
        torch.testing.assert_close(
            mine.last_update.coefficients.double(),
            torch.tensor(hand.coefficients, dtype=torch.float64),
            rtol=1e-9 if dtype == torch.float64 else 1e-3,
            atol=0.0,
        )
        for model in (ours, theirs):
            model.zero_grad()
    return ours, theirs, seen, mine


@pytest.mark.parametrize("steps", [6, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("max_update", "by", "max_norm"),
    [
        (2e-2, "tensor", math.inf),
        ({"query": 1e-3, "*": 2e-2}, "tensor", 0.05),
        (UpdateLimit(2e-2, floor=0.1), "layer", math.inf),
        (5e-3, "global", 0.05),
    ],
)
def test_it_is_the_formula(max_update: Any, by: Any, max_norm: float, steps: int) -> None:
    ours, theirs, seen, _ = step_both(_runs.bert, max_update, by, steps, max_norm=max_norm)
    _runs.assert_alike(_runs.weights(ours), _runs.weights(theirs), tolerance=1e-10)
    flat = [factor for step in seen for factor in step]
    assert any(factor < 0.9 for factor in flat)
    if by != "global":
        assert any(factor == 1.0 for factor in flat)
