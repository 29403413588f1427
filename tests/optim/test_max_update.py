"""Steps of ClippedAdamW that are limited by the weights, against the formula in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.clipping._bag import INF, NAN, Bag, drawn
from tests.optim import _runs
from tests.optim._limited_by_hand import LimitedByHand
from tests.optim._ways import kernels
from torch import nn

from evenkeel import ClipStatistics, clip_grad_norm_, components
from evenkeel.clipping import cpu
from evenkeel.optim import ClippedAdamW, UpdateLimit, clipped, latest_update
from evenkeel.optim._on_zeros import OnZeros
from evenkeel.partition import Components

__all__ = ["kernels"]

RATE, EPSILON = 1e-2, 1e-3


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


@pytest.mark.parametrize(
    "model", ["gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "mixtral"))]
)
def test_cut_tensors_are_limited_part_by_part(model: str) -> None:
    """By what any optimizer's limiter does, which is tested by plain loops, where weights do not decay."""
    make = _runs.MODELS[model]
    ours, theirs = make(), make()
    plain = torch.optim.AdamW(theirs.parameters(), lr=RATE, eps=EPSILON, weight_decay=0.0)
    pairs: list[tuple[nn.Module, Any]] = [
        (ours, ClippedAdamW(ours, lr=RATE, eps=EPSILON, weight_decay=0.0, max_norm=0.05, max_update=0.02)),
        (theirs, clipped(plain, theirs, max_norm=0.05, max_update=0.02)),
    ]
    for batch in _runs.batches(ours, 6):
        found = []
        for one, optimizer in pairs:
            _runs.backward(one, batch)
            optimizer.step()
            optimizer.zero_grad()
            latest = latest_update(optimizer)
            assert latest is not None
            found.append(latest[0])
        torch.testing.assert_close(found[0].coefficients, found[1].coefficients, rtol=2e-3, atol=0)
        assert found[0].names == found[1].names
    _runs.assert_alike(_runs.weights(ours), _runs.weights(theirs))
    assert found[0].coefficients.min() < 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    weight = torch.linspace(-1, 1, 64).view(8, 8).to(dtype)
    bags = [Bag(*[torch.zeros(8, 8, dtype=dtype)] * 2), Bag(*[torch.zeros(8, 8, dtype=torch.float64)] * 2)]
    optimizers = [
        ClippedAdamW(bag, lr=0.1, weight_decay=0.1, max_norm=math.inf, max_update={"p0": 0.01, "*": 1.0})
        for bag in bags
    ]
    for bag in bags:
        for parameter in bag.parameters():
            parameter.data.copy_(weight)
    for step in range(3):
        for bag, optimizer in zip(bags, optimizers, strict=True):
            for seed, parameter in enumerate(bag.parameters()):
                parameter.grad = drawn(8, 8, seed=10 * step + seed, dtype=dtype).to(parameter.dtype)
            optimizer.step()
            assert optimizer.last_update is not None
            assert (optimizer.last_update.coefficients < 1).tolist() == [True, False]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for one, other in zip(bags[0].parameters(), bags[1].parameters(), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)


SHAPES = [(40, 30), (3,), (1025,), (), (0,), (7, 5000)]


@pytest.mark.filterwarnings("ignore:.*have no entries:UserWarning")
@pytest.mark.parametrize("nonfinite", ["propagate", "zero"])
@pytest.mark.parametrize("limit", [UpdateLimit(0.01), UpdateLimit({"p0": 0.001, "*": 0.05}, floor=0.1, decay=True)])
def test_all_at_once_it_is_what_it_is_on_zeros(
    limit: UpdateLimit, nonfinite: Any, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a tensor is a component kernels do all while it is in the cache; elsewhere zeros stand for the weights."""
    bags = [Bag(*[torch.zeros(shape) for shape in SHAPES], None) for _ in range(3)]
    bags[2].double()
    found = []
    asked: list[int] = []
    real = OnZeros.of
    for bag, here in zip(bags, (True, False, False), strict=True):
        for seed, parameter in enumerate(bag.parameters()):
            parameter.data.copy_(drawn(*parameter.shape, seed=seed))
        optimizer = ClippedAdamW(
            [{"params": list(bag.parameters())[:3], "lr": 0.3}, {"params": list(bag.parameters())[3:]}],
            lr=0.1,
            weight_decay=0.1,
            parts=components(bag),
            max_norm=0.5,
            max_update=limit,
            nonfinite=nonfinite,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (0.5, 1.0, 0.7, 0.0)[step])
        with monkeypatch.context() as patch:
            patch.setattr(cpu, "available", lambda here=here: kernels and here)
            patch.setattr(OnZeros, "of", lambda *args, here=here: asked.append(here) or real(*args))
            for step in range(3):
                for seed, parameter in enumerate(list(bag.parameters())[:-1]):
                    grad = drawn(*parameter.shape, seed=10 * step + seed) * (1e-25 if step == 1 and seed == 2 else 1.0)
                    parameter.grad = grad.to(parameter.dtype)
                    if step == 2 and seed == 1:
                        parameter.grad[0] = NAN
                optimizer.step()
                schedule.step()
        assert optimizer.last_update is not None
        assert optimizer.last is not None
        found.append((optimizer.last_update, optimizer.last, [one.detach().double() for one in bag.parameters()]))
    assert asked == [True] * (0 if kernels else 3) + [False] * 6
    for one, tolerance in ((found[1], 1e-5), (found[2], 1e-4)):
        for name in ("norms", "thresholds", "coefficients"):
            for ours, theirs in zip(found[0][:2], one[:2], strict=True):
                mine, other = getattr(ours, name).double(), getattr(theirs, name).double()
                torch.testing.assert_close(mine, other, rtol=tolerance, atol=1e-9, equal_nan=True)
        for mine, other in zip(found[0][2], one[2], strict=True):
            torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance, equal_nan=True)
    assert (found[0][0].coefficients < 0.9).sum() >= 2
    assert found[0][2][1].isnan().all() == (nonfinite == "propagate")


OPTIONS: dict[str, dict[str, Any]] = {
    "amsgrad": {"amsgrad": True},
    "maximize": {"maximize": True},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "not fused": {"fused": False},
    "uncorrected": {"correct_bias": False},
    "a rate that is a tensor": {"lr": torch.tensor(RATE)},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "amsgrad" else pytest.mark.slow) for name in OPTIONS]
)
def test_a_limit_that_is_never_reached_changes_nothing(name: str) -> None:
    found = []
    for max_update in (None, 1e3):
        model = _runs.bert()
        optimizer = ClippedAdamW(
            model, **({"lr": RATE, "eps": EPSILON, "max_norm": 0.05} | OPTIONS[name]), max_update=max_update
        )
        for batch in _runs.batches(model, 5):
            _runs.backward(model, batch)
            optimizer.step()
            optimizer.zero_grad()
        found.append(_runs.weights(model))
        assert (optimizer.last_update is None) is (max_update is None)
    _runs.assert_alike(found[1], found[0], tolerance=2e-6)


def test_an_infinite_limit_is_none() -> None:
    model = _runs.bert()
    optimizer = ClippedAdamW(model, max_norm=0.05, max_update={"query": math.inf, "*": math.inf})
    _runs.backward(model, next(_runs.batches(model, 1)))
    optimizer.step()
    assert optimizer.last_update is None


@pytest.mark.parametrize("decay", [False, True])
def test_the_limit_follows_each_groups_schedule(decay: bool) -> None:
    """Of two groups with rates of their own, whose schedule warms up: the limit is that of the peak, scaled."""
    rates = [0.25, 1.0, 0.5, 0.0]
    ours, theirs = _runs.bert().double(), _runs.bert().double()
    limit = UpdateLimit(0.02, decay=decay)
    mine = ClippedAdamW(
        groups_of(ours, 0.1, 3 * RATE),
        lr=RATE,
        eps=EPSILON,
        parts=components(ours),
        max_norm=math.inf,
        max_update=limit,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(mine, lambda step: ([*rates, 0.0])[step])
    hand = LimitedByHand(
        theirs,
        share=lambda name: 0.02,
        members=members_of(components(theirs)),
        rate=RATE,
        eps=EPSILON,
        decay=lambda name: 0.0 if bare(name) else 0.1,
    )
    seen = []
    for factor, batch in zip(rates, _runs.batches(ours, len(rates)), strict=True):
        for model in (ours, theirs):
            _runs.backward(model, batch)
        mine.step()

        def peak(name: str) -> float:
            return 3 * RATE if bare(name) else RATE

        hand.step(lambda name, factor=factor: factor * peak(name), peak if decay else None)  # type: ignore[misc]
        seen += hand.coefficients
        schedule.step()
        for model in (ours, theirs):
            model.zero_grad()
    _runs.assert_alike(_runs.weights(ours), _runs.weights(theirs), tolerance=1e-10)
    assert min(seen) < 0.9


@pytest.mark.parametrize(
    ("group", "begun", "peak"),
    [
        ({"lr": 0.1}, 0.3, 0.3),
        ({"lr": 0.1, "initial_lr": 0.4}, 0.3, 0.4),
        ({"lr": 0.1, "initial_lr": 0.04, "max_lr": 1.0}, 0.3, 1.0),
    ],
)
def test_what_the_peak_of_a_schedule_is(group: dict[str, Any], begun: float, peak: float) -> None:
    assert UpdateLimit(0.1, decay=True).peak(group, begun) == peak
    assert UpdateLimit(0.1).peak(group, begun) == 0.1


def test_steps_that_are_limited_are_counted() -> None:
    model = _runs.bert()
    counted = ClipStatistics()
    optimizer = ClippedAdamW(model, lr=RATE, eps=EPSILON, max_norm=math.inf, max_update={"query": 1e-9, "*": 1e3})
    for batch in _runs.batches(model, 3):
        _runs.backward(model, batch)
        optimizer.step()
        assert optimizer.last_update is not None
        counted.update(optimizer.last_update)
        optimizer.zero_grad()
    assert {name: share == 1.0 for name, share in counted.clipped.items()} == {
        name: ".query." in name for name in counted.clipped
    }


def test_its_state_is_that_of_adamw_both_ways() -> None:
    model = _runs.bert()
    mine = ClippedAdamW(model, lr=RATE, eps=EPSILON, max_norm=math.inf, max_update=0.02)
    for batch in _runs.batches(model, 3):
        _runs.backward(model, batch)
        mine.step()
        mine.zero_grad()
    plain = torch.optim.AdamW(model.parameters(), lr=1.0)
    plain.load_state_dict(copy.deepcopy(mine.state_dict()))
    assert plain.state_dict()["param_groups"] == mine.state_dict()["param_groups"]
    assert set(mine.state_dict()) == {"state", "param_groups"}
    back = ClippedAdamW(model, lr=1.0, max_norm=math.inf, max_update=0.02)
    back.load_state_dict(copy.deepcopy(plain.state_dict()))
    twin = copy.deepcopy(model)
    last = ClippedAdamW(twin, lr=RATE, eps=EPSILON, max_norm=math.inf, max_update=0.02)
    last.load_state_dict(copy.deepcopy(mine.state_dict()))
    batch = next(_runs.batches(model, 1))
    for one, optimizer in ((model, back), (twin, last)):
        _runs.backward(one, batch)
        optimizer.step()
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("overflow", [False, True])
@pytest.mark.parametrize("fused", [None, True])
def test_a_gradient_scaler_divides_and_skips(fused: bool | None, overflow: bool) -> None:
    ours, theirs = _runs.bert(), _runs.bert()
    options: dict[str, Any] = {"lr": RATE, "eps": EPSILON, "weight_decay": 0.1, "max_norm": 0.05, "max_update": 0.02}
    mine, plain = ClippedAdamW(ours, **options, fused=fused), ClippedAdamW(theirs, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step, batch in enumerate(_runs.batches(ours, 4)):
        scaler.scale(ours(**batch).loss).backward()
        spoilt = overflow and step == 2
        if spoilt:
            next(ours.parameters()).grad.view(-1)[0] = INF  # type: ignore[union-attr]
        scaler.step(mine)
        scaler.update()
        mine.zero_grad()
        if not spoilt:
            _runs.backward(theirs, batch)
            plain.step()
            plain.zero_grad()
    _runs.assert_alike(_runs.weights(ours), _runs.weights(theirs))


@pytest.mark.parametrize("nonfinite", ["propagate", "zero"])
def test_what_is_not_finite_stays_in_its_component(nonfinite: Any) -> None:
    bag = Bag(torch.tensor([NAN, 1.0]), torch.tensor([3.0, 4.0]))
    for parameter in bag.parameters():
        parameter.data.fill_(1.0)
    optimizer = ClippedAdamW(bag, lr=0.1, weight_decay=0.5, max_norm=1.0, max_update=0.01, nonfinite=nonfinite)
    optimizer.step()
    first, second = bag.parameters()
    assert bool(first.isnan().all()) is (nonfinite == "propagate")
    if nonfinite == "zero":  # no step, and nothing to limit: the weights decay
        assert first.tolist() == pytest.approx([0.95, 0.95])
    far = 0.01 * (math.sqrt(2) + 1e-3 * math.sqrt(2))
    factor = far / (0.1 * math.sqrt(2))
    assert second.tolist() == pytest.approx([1 - factor * (0.1 + 0.05)] * 2, rel=1e-6)


def test_what_has_no_gradient_counts_with_its_weights_alone() -> None:
    bag = Bag(torch.ones(4), None)
    for parameter in bag.parameters():
        parameter.data.fill_(2.0)
    optimizer = ClippedAdamW(
        components(bag, "global"), lr=0.1, weight_decay=0.0, max_norm=math.inf, max_update=UpdateLimit(0.01, floor=1e-9)
    )
    optimizer.step()
    assert optimizer.last_update is not None
    size = sum(parameter.numel() for parameter in bag.parameters())
    assert optimizer.last_update.thresholds.item() == pytest.approx(0.01 * 2 * math.sqrt(size), rel=1e-6)
    assert optimizer.last_update.norms.item() == pytest.approx(0.2, rel=1e-6)
    assert list(bag.parameters())[1].tolist() == [2.0] * (size - 4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
def test_a_compiled_step_does_the_same(kernels: bool) -> None:
    if not kernels:
        pytest.skip("a compiled step uses no kernels anyway, and compiling takes minutes")
    torch._dynamo.reset()
    ours, theirs = _runs.bert(), _runs.bert()
    options: dict[str, Any] = {"lr": RATE, "eps": EPSILON, "weight_decay": 0.1, "max_norm": 0.05, "max_update": 0.02}
    mine, plain = ClippedAdamW(ours, **options), ClippedAdamW(theirs, **options)
    step = torch.compile(mine.step, backend="aot_eager")
    for batch in _runs.batches(ours, 3):
        for one in (ours, theirs):
            _runs.backward(one, batch)
        step()
        plain.step()
        for optimizer in (mine, plain):
            optimizer.zero_grad()
    torch._dynamo.reset()
    _runs.assert_alike(_runs.weights(ours), _runs.weights(theirs))
