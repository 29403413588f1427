"""Any optimizer with clipping before its step."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.optim import _runs
from torch import nn

from evenkeel import ClipStatistics, clip_grad_norm_, components
from evenkeel.clipping.thresholds import Percentile
from evenkeel.errors import ComponentError, OptimizerError, ThresholdError
from evenkeel.optim import ClippedAdamW, clipped, step_in_backward

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9),
    "adam": lambda ps: torch.optim.Adam(ps, lr=1e-3, eps=1e-5),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=1e-3),
    "adafactor": lambda ps: torch.optim.Adafactor(ps, lr=1e-2),
    "fused adamw": lambda ps: torch.optim.AdamW(ps, lr=1e-3, eps=1e-5, fused=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("by", ["tensor", pytest.param("layer", marks=pytest.mark.slow)])
def test_it_is_clipping_and_then_its_step(name: str, by: Any) -> None:
    make = OPTIMIZERS[name]
    theirs = _runs.clip_then_step(_runs.bert, make, 0.05, 20, by)
    model = _runs.bert()
    optimizer = clipped(make(list(model.parameters())), components(model, by), max_norm=0.05)
    assert type(optimizer) is type(make(list(model.parameters())))
    for batch in _runs.batches(model, 20):
        _runs.backward(model, batch)
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(value, theirs[key]) for key, value in _runs.weights(model).items())


@pytest.mark.parametrize("fused", [False, True])
def test_a_gradient_scaler_divides_before_clipping(fused: bool) -> None:
    model, twin = _runs.bert(), _runs.bert()
    statistics = ClipStatistics()
    mine = clipped(
        torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-5, fused=fused),
        model,
        max_norm=0.05,
        statistics=statistics,
    )
    theirs = torch.optim.AdamW(twin.parameters(), lr=1e-3, eps=1e-5, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for batch in _runs.batches(model, 5):
        scaler.scale(model(**batch).loss).backward()
        scaler.step(mine)
        scaler.update()
        mine.zero_grad()
        _runs.backward(twin, batch)
        clip_grad_norm_(twin, 0.05)
        theirs.step()
        theirs.zero_grad()
    _runs.assert_alike(_runs.weights(model), _runs.weights(twin))
    assert set(statistics.steps.values()) == {5}


def test_what_a_threshold_learns_is_in_the_state() -> None:
    model = _runs.bert()
    optimizer = clipped(torch.optim.SGD(model.parameters(), lr=0.1), model, max_norm=Percentile(20))
    _runs.backward(model, next(_runs.batches(model, 1)))
    optimizer.step()
    state = optimizer.state_dict()
    assert state["threshold"]["name"] == "Percentile"
    fresh = Percentile(20)
    clipped(torch.optim.SGD(model.parameters(), lr=0.1), model, max_norm=fresh).load_state_dict(state)
    assert fresh.state_dict()["seen"].tolist() == state["threshold"]["state"]["seen"].tolist()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda m: clipped(torch.optim.LBFGS(m.parameters()), m, max_norm=1.0),
            OptimizerError,
            "LBFGS.step needs a clo",
        ),
        (
            lambda m: clipped(ClippedAdamW(m, max_norm=1.0), m, max_norm=1.0),
            OptimizerError,
            "clips by component alread",
        ),
        (
            lambda m: clipped(clipped(_runs.sgd(m.parameters()), m, max_norm=1.0), m, max_norm=1.0),
            OptimizerError,
            "clips by component already",
        ),
        (
            lambda m: clipped(m, m, max_norm=1.0),
            OptimizerError,
            "an optimizer of torch is needed here, but got a Linear",
        ),
        (
            lambda m: clipped(_runs.sgd(m.parameters()), nn.Linear(2, 2), max_norm=1.0),
            ComponentError,
            "belong to no component",
        ),
        (lambda m: clipped(_runs.sgd(m.parameters()), m, max_norm=0.0), ThresholdError, "no positive number"),
        (
            lambda m: step_in_backward(m, lambda ps: clipped(_runs.sgd(ps), m, max_norm=1.0), 1.0),
            OptimizerError,
            "clips by component already",
        ),
    ],
)
def test_bad_input_is_refused(make: Callable[[nn.Module], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(nn.Linear(2, 2))


def test_a_closure_is_refused_before_anything_changes() -> None:
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    optimizer = clipped(_runs.sgd(model.parameters()), model, max_norm=1.0)
    model(torch.ones(1, 2)).sum().backward()
    for call in (lambda: optimizer.step(lambda: 0.0), lambda: optimizer.step(closure=lambda: 0.0)):
        with pytest.raises(OptimizerError, match=r"call backward\(\) before step\(\)"):
            call()
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_is_not_clipped(fused: bool) -> None:
    model = nn.Linear(2, 2)
    threshold = Percentile(20)
    plain = torch.optim.AdamW(model.parameters(), fused=fused)
    optimizer = clipped(plain, model, max_norm=threshold, nonfinite="error")
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(model(torch.ones(1, 2)).sum()).backward()
    model.weight.grad[0, 0] = float("inf")  # type: ignore[index]
    scaler.step(optimizer)
    assert threshold.state_dict()["names"] == []


def test_copies_which_would_not_clip_are_refused() -> None:
    model = nn.Linear(2, 2)
    optimizer = clipped(_runs.sgd(model.parameters()), model, max_norm=1.0)
    for copying in (copy.deepcopy, pickle.dumps):
        with pytest.raises(OptimizerError, match="cannot be copied or pickled"):
            copying(optimizer)


def test_stepping_in_backward_clips_already() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(OptimizerError, match="clips by component already"):
        clipped(step_in_backward(model, _runs.sgd, 1.0), model, max_norm=1.0)
