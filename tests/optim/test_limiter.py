"""Steps of any optimizer that are limited after they were made, against the same by plain loops."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.clipping._bag import Bag
from tests.optim import _runs
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from evenkeel import ClipStatistics, clip_grad_norm_, components
from evenkeel.errors import OptimizerError, ThresholdError
from evenkeel.optim import ClippedAdamW, UpdateLimit, clipped, latest_update, step_in_backward
from evenkeel.partition import Components

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.5, momentum=0.9),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=1e-2, eps=1e-5, weight_decay=0.3),
    "adafactor": lambda ps: torch.optim.Adafactor(ps, lr=3e-2),
    "fused adamw": lambda ps: torch.optim.AdamW(ps, lr=1e-2, eps=1e-5, fused=True),
}
WAYS = ["clipped", "in backward"]


def entries(parts: Components) -> list[list[Tensor]]:
    """Views of every component's weights."""
    return [[view for piece in part.pieces for view in piece.of(piece.tensor().detach())] for part in parts]


def norm(tensors: list[Tensor]) -> float:
    return math.sqrt(math.fsum(float(one.double().square().sum()) for one in tensors))


def by_loops(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: Components,
    share: Callable[[str | None], float],
    batches: Any,
    *,
    max_norm: float = math.inf,
    floor: float = 1e-3,
    measured: Callable[[int], float] = lambda step: 1.0,
    after: Callable[[], object] = lambda: None,
) -> list[list[float]]:
    """Take back by hand what is too much of each change; ``measured`` is what changes count times."""
    seen = []
    for step, batch in enumerate(batches):
        _runs.backward(model, batch)
        clip_grad_norm_(parts, max_norm)
        before = [[view.clone() for view in views] for views in entries(parts)]
        optimizer.step()
        factors = []
        for part, old, now in zip(parts, before, entries(parts), strict=True):
            size = sum(view.numel() for view in old)
            allowed = share(part.role) * (norm(old) + floor * math.sqrt(size))
            far = measured(step) * norm([new - own for new, own in zip(now, old, strict=True)])
            factors.append(min(1.0, allowed / far) if far else 1.0)
            for new, own in zip(now, old, strict=True):
                new.copy_(own + factors[-1] * (new - own))
        seen.append(factors)
        optimizer.zero_grad()
        after()
    return seen


def limited(way: str, make: Any, parts: Components, max_update: Any, max_norm: float = math.inf) -> Any:
    if way == "in backward":
        return step_in_backward(parts, make, max_norm, max_update=max_update)
    optimizer = make(list({id(one): one for part in parts for one in part.parameters}.values()))
    return clipped(optimizer, parts, max_norm=max_norm, max_update=max_update)


FIRST = {("sgd", "clipped", "bert"), ("adamw", "in backward", "gpt2")}  # all others in the second tier
ALL = [
    pytest.param(*one, by, marks=() if one in FIRST else pytest.mark.slow)
    for model, by in (("bert", "tensor"), ("gpt2", "tensor"), ("llama", "layer"))
    for one in itertools.product(OPTIMIZERS, WAYS, [model])
]


@pytest.mark.parametrize(("name", "way", "model", "by"), ALL)
def test_it_is_the_formula(name: str, way: str, model: str, by: Any) -> None:
    ours, theirs = _runs.MODELS[model]().double(), _runs.MODELS[model]().double()
    mine = limited(way, OPTIMIZERS[name], components(ours, by), {"query": 1e-3, "*": 0.02} if by == "tensor" else 0.02)
    share = (lambda role: 1e-3 if role == "query" else 0.02) if by == "tensor" else (lambda role: 0.02)
    batches = list(_runs.batches(ours, 6))
    plain = OPTIMIZERS[name](list(theirs.parameters()))
    wanted = by_loops(theirs, plain, components(theirs, by), share, batches)
    for batch, factors in zip(batches, wanted, strict=True):
        _runs.backward(ours, batch)
        mine.step()
        mine.zero_grad()
        found = latest_update(mine)
        assert found is not None
        assert found[1] is mine.parts if way == "in backward" else True
        torch.testing.assert_close(found[0].coefficients.double(), torch.tensor(factors).double(), rtol=1e-5, atol=0)
    tolerance = 2e-5 if name == "adafactor" else 1e-9  # which makes rounding errors of keys' biases as large as others
    _runs.assert_alike(_runs.weights(ours), _runs.weights(theirs), tolerance=tolerance)
    flat = [factor for step in wanted for factor in step]
    assert min(flat) < 0.9


@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_clipped_too_and_the_limit_follows_the_rate(way: str) -> None:
    rates = [0.25, 0.5, 1.0, 0.5, 0.0]  # of a schedule with warm-up
    ours, theirs = _runs.bert().double(), _runs.bert().double()
    make = OPTIMIZERS["adamw"]
    mine = limited(way, make, components(ours), UpdateLimit(0.02, floor=0.01, decay=True), 0.05)
    plain = make(list(theirs.parameters()))
    schedules = [torch.optim.lr_scheduler.LambdaLR(one, lambda step: ([*rates, 0.0])[step]) for one in (mine, plain)]
    batches = list(_runs.batches(ours, len(rates)))
    wanted = by_loops(
        theirs,
        plain,
        components(theirs),
        lambda role: 0.02,
        batches,
        max_norm=0.05,
        floor=0.01,
        measured=lambda step: 1 / rates[step] if rates[step] else 1.0,
        after=schedules[1].step,
    )
    for batch in batches:
        _runs.backward(ours, batch)
        mine.step()
        mine.zero_grad()
        schedules[0].step()
    _runs.assert_alike(_runs.weights(ours), _runs.weights(theirs), tolerance=1e-9)
    assert min(min(step) for step in wanted[:4]) < 0.9
    assert set(wanted[4]) == {1.0}  # nothing was left to limit


@pytest.mark.parametrize("way", WAYS)
def test_what_is_allowed_keeps_its_bits(way: str) -> None:
    ours, theirs = _runs.bert(), _runs.bert()
    mine = limited(way, OPTIMIZERS["adamw"], components(ours), 100.0)
    plain = OPTIMIZERS["adamw"](list(theirs.parameters()))
    for batch in _runs.batches(ours, 3):
        for model, optimizer in ((ours, mine), (theirs, plain)):
            _runs.backward(model, batch)
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(one, other) for one, other in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_limits_are_counted_as_clipping_is() -> None:
    model = Bag(torch.ones(1), torch.ones(1))
    (first, second) = model.parameters()
    first.data.fill_(1.0)
    second.data.fill_(100.0)
    counted = ClipStatistics()
    optimizer = clipped(
        torch.optim.SGD(model.parameters(), lr=0.5), model, max_norm=math.inf, max_update=0.1, update_statistics=counted
    )
    for _ in range(2):
        for parameter in (first, second):
            parameter.grad = torch.ones(1)
        optimizer.step()
    assert counted.clipped == {"p0": 1.0, "p1": 0.0}
    assert counted.to_dict()["p0"]["mean_norm"] == pytest.approx(0.5)
    assert second.item() == 99.0
    assert first.item() == pytest.approx((1 - 0.1 * 1.001) - 0.1 * ((1 - 0.1 * 1.001) + 1e-3))


def test_components_that_are_not_trained_are_not_copied() -> None:
    model = nn.Linear(2, 2)
    optimizer = clipped(_runs.sgd([model.weight]), model, max_norm=math.inf, max_update=0.1)
    assert latest_update(optimizer) is None
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    found = latest_update(optimizer)
    assert found is not None
    assert found[0].names == ("weight",) == tuple(part.name for part in found[1])


def test_nobody_limits_an_ordinary_optimizer() -> None:
    model = nn.Linear(2, 2)
    for optimizer in (_runs.sgd(model.parameters()), ClippedAdamW(model, max_norm=1.0)):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        assert latest_update(optimizer) is None


def test_a_step_that_a_scaler_skips_is_not_limited() -> None:
    model = nn.Linear(2, 2)
    counted = ClipStatistics()
    plain = torch.optim.AdamW(model.parameters(), fused=True)
    optimizer = clipped(plain, model, max_norm=1.0, max_update=1e-3, update_statistics=counted)
    before = model.weight.detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(model(torch.ones(1, 2)).sum()).backward()
    model.weight.grad[0, 0] = float("inf")  # type: ignore[index]
    scaler.step(optimizer)
    assert torch.equal(model.weight, before)
    assert counted.steps == {}


MAKERS: dict[str, Callable[..., Any]] = {
    "clipped adamw": lambda model, **more: ClippedAdamW(model, max_norm=1.0, **more),
    "clipped": lambda model, **more: clipped(_runs.sgd(model.parameters()), model, max_norm=1.0, **more),
    "in backward": lambda model, **more: step_in_backward(model, _runs.sgd, 1.0, **more),
}


@pytest.mark.parametrize("way", MAKERS)
@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (0.0, "max_update 0.0"),
        (math.nan, "max_update nan"),
        (True, "max_update True"),
        ("1", "max_update '1' is neither a number nor numbers by role"),
        ({}, "max_update is an empty mapping"),
        ({"nobody": 1.0, "*": 1.0}, "max_update names 'nobody'"),
        ({"weight": 1.0}, "max_update says nothing of 1 components"),
    ],
)
def test_what_is_no_limit_is_refused(way: str, bad: Any, said: str) -> None:
    with pytest.raises(ThresholdError, match=said):
        MAKERS[way](nn.Linear(2, 2), max_update=bad)


@pytest.mark.parametrize("way", [MAKERS["clipped adamw"], MAKERS["clipped"]], ids=["clipped adamw", "clipped"])
def test_stages_of_a_pipeline_are_refused(way: Callable[..., Any]) -> None:
    group = functools.partial(ProcessGroup, 0, 1)
    with pytest.raises(OptimizerError, match="max_update was given together with the ranks of a pipeline's stages"):
        way(nn.Linear(2, 2), max_update=0.1, group=group())


@pytest.mark.parametrize(
    ("option", "bad", "said"),
    [("floor", 0.0, "the floor of max_update must be"), ("decay", 1, "decay of max_update must be True or False")],
)
def test_options_of_a_limit(option: str, bad: Any, said: str) -> None:
    with pytest.raises(ThresholdError, match=said):
        UpdateLimit(0.1, **{option: bad})
