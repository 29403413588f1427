"""StableAdamW is the paper's algorithm, AdamW where no gradient outgrows its second moment, and torch's to look at."""

from __future__ import annotations

import copy
import functools
import io
import math
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from tests import _models, _ranks
from tests.clipping.thresholds._drive import NoSynchronisation
from tests.optim import _jobs, _runs
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from transformers import Trainer, TrainingArguments

from evenkeel import components
from evenkeel.errors import OptimizerError
from evenkeel.optim import StableAdamW, _by_tensor, _stable_update, clipped, step_in_backward

INF, NAN = math.inf, math.nan
Grads = Sequence[Tensor | None]


def twin(
    weight: Tensor,
    grads: Grads,
    lr: float | Sequence[float],
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    decay: float = 1e-2,
) -> tuple[Tensor, list[float]]:
    """Algorithm 2 as it is printed, in float64: betas that hold the bias correction; also the R of every step."""
    theta = weight.detach().double()
    mean, square = torch.zeros_like(theta), torch.zeros_like(theta)
    found: list[float] = []
    for index, grad in enumerate(grads):
        if grad is None:
            continue
        step, gradient = len(found) + 1, grad.double()
        first, second = (beta * (1 - beta ** (step - 1)) / (1 - beta**step) for beta in betas)
        mean = first * mean + (1 - first) * gradient
        square = second * square + (1 - second) * gradient**2
        rms = (gradient**2 / square.clamp_min(eps**2)).mean().sqrt().item() if theta.numel() else 0.0
        rate = (lr[index] if isinstance(lr, Sequence) else lr) / max(1.0, rms)
        theta = theta - rate * decay * theta - rate * mean / (square.sqrt() + eps)
        found.append(rms)
    return theta, found


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def stepped(optimizer: torch.optim.Optimizer, weights: Sequence[Tensor], grads: Sequence[Grads]) -> list[list[float]]:
    """Step on given gradients, one row for each weight; return the R that the optimizer tells."""
    found: list[list[float]] = [[] for _ in weights]
    for row in zip(*grads, strict=True):
        for weight, grad in zip(weights, row, strict=True):
            weight.grad = None if grad is None else grad.clone()
        optimizer.step()
        for number, weight in enumerate(weights):
            if isinstance(optimizer, StableAdamW) and weight in optimizer.rms:
                found[number].append(optimizer.rms[weight].item())
    return found


def size(change: Tensor) -> float:
    return change.double().square().mean().sqrt().item()


# --- the algorithm

SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
EXPONENTS = st.floats(-6.0, 6.0)


@given(
    shapes=st.lists(SHAPES, min_size=1, max_size=4),
    scales=st.lists(st.one_of(st.none(), EXPONENTS), min_size=1, max_size=12),
    betas=st.tuples(st.floats(0.0, 0.99), st.floats(0.0, 0.9999)),
    eps=st.sampled_from([1e-12, 1e-8, 1e-2]),
    decay=st.sampled_from([0.0, 0.1]),
    foreach=st.sampled_from([None, True, False]),
    seed=st.integers(0, 1000),
)
def test_it_is_the_papers_algorithm(
    shapes: list[tuple[int, ...]],
    scales: list[float | None],
    betas: tuple[float, float],
    eps: float,
    decay: float,
    foreach: bool | None,
    seed: int,
) -> None:
    weights = [nn.Parameter(drawn(*shape, seed=seed, dtype=torch.float64)) for shape in shapes]
    grads: list[list[Tensor | None]] = [
        [
            None if scale is None else drawn(*shape, seed=seed + 10 * step + place, dtype=torch.float64) * 10**scale
            # Every tensor has its own gaps: they count steps of their own.
            for step, scale in enumerate(scales[place % len(scales) :] + scales[: place % len(scales)])
        ]
        for place, shape in enumerate(shapes)
    ]
    wanted = [twin(weight, row, 0.1, betas, eps=eps, decay=decay) for weight, row in zip(weights, grads, strict=True)]
    optimizer = StableAdamW(weights, lr=0.1, betas=betas, eps=eps, weight_decay=decay, foreach=foreach)
    told = stepped(optimizer, weights, grads)
    for weight, rms, (end, expected) in zip(weights, told, wanted, strict=True):
        torch.testing.assert_close(weight.detach(), end, rtol=1e-9, atol=1e-9)
        assert rms == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("foreach", "norms"), [(None, False), (True, False), (False, False), (None, True)])
def test_hundreds_of_steps_stay_with_the_formula_in_float32(
    foreach: bool | None, norms: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if norms:  # as on a GPU
        monkeypatch.setattr(_stable_update, "_COARSE", ())
    steps, shapes = 400, [(7, 11), (64,), ()]
    weights = [nn.Parameter(drawn(*shape)) for shape in shapes]
    loud = [30.0 if step % 50 == 49 else 1.0 for step in range(steps)]
    grads = [[drawn(*shape, seed=1 + step) * 0.01 * loud[step] for step in range(steps)] for shape in shapes]
    wanted = [twin(weight, row, 1e-2, (0.9, 0.99)) for weight, row in zip(weights, grads, strict=True)]
    told = stepped(StableAdamW(weights, lr=1e-2, betas=(0.9, 0.99), foreach=foreach), weights, grads)
    for weight, rms, (end, expected) in zip(weights, told, wanted, strict=True):
        assert max(expected) > 3
        assert min(expected) < 1  # else one of the two sides of the maximum was not seen
        torch.testing.assert_close(weight.detach().double(), end, rtol=1e-5, atol=1e-5)
        assert rms == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_it_is_adamw_where_no_gradient_outgrows_its_second_moment(
    dtype: torch.dtype, tolerance: float, decay: float
) -> None:
    shapes, steps = [(7, 11), (64,), ()], 300
    mine, theirs = ([nn.Parameter(drawn(*shape, dtype=dtype)) for shape in shapes] for _ in range(2))
    # No entry is ever larger than it was: so it is not larger than the mean of its squares either.
    sizes = [0.99**step * (-1) ** (step // 7) for step in range(steps)]
    grads = [[drawn(*shape, seed=1, dtype=dtype) * factor for factor in sizes] for shape in shapes]
    options: dict[str, Any] = {"lr": 1e-2, "weight_decay": decay, "eps": 1e-6}
    told = stepped(StableAdamW(mine, **options), mine, grads)
    stepped(torch.optim.AdamW(theirs, **options), theirs, grads)
    assert max(map(max, told)) <= 1 + 1e-6
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


# --- what it promises


@given(
    exponents=st.lists(EXPONENTS, min_size=1, max_size=10),
    beta2=st.floats(0.0, 0.9999),
    seed=st.integers(0, 1000),
)
def test_without_momentum_no_step_is_larger_than_the_learning_rate(
    exponents: list[float], beta2: float, seed: int
) -> None:
    weight = nn.Parameter(torch.zeros(3, 5))
    optimizer = StableAdamW([weight], lr=1.0, betas=(0.0, beta2), weight_decay=0.0)
    for step, exponent in enumerate(exponents):
        before = weight.detach().clone()
        weight.grad = drawn(3, 5, seed=seed + step) * 10**exponent
        optimizer.step()
        assert size(weight.detach() - before) <= 1 + 1e-4
        assert optimizer.rms[weight].item() <= 1 / math.sqrt(1 - beta2) * (1 + 1e-4)


@functools.cache
def quiet() -> dict[str, Any]:
    """The state after 300 ordinary steps, which is no other for AdamW: moments see gradients alone."""
    weight = nn.Parameter(torch.zeros(8, 8))
    optimizer = StableAdamW([weight], lr=1.0, weight_decay=0.0)
    stepped(optimizer, [weight], [[drawn(8, 8, seed=step) for step in range(300)]])
    return optimizer.state_dict()


def updates(kind: type[torch.optim.Optimizer], *grads: Tensor) -> tuple[list[float], Any]:
    """Return the size of each update after that quiet time, at a learning rate of 1; and the optimizer."""
    weight = nn.Parameter(torch.zeros(8, 8))
    optimizer: Any = kind([weight])  # type: ignore[call-arg]
    optimizer.load_state_dict(copy.deepcopy(quiet()))
    found = []
    for grad in grads:
        before = weight.detach().clone()
        stepped(optimizer, [weight], [[grad]])
        found.append(size(weight.detach() - before))
    return found, optimizer


@given(exponent=st.floats(1.0, 15.0), rows=st.integers(1, 8))
def test_a_sudden_large_gradient_is_tamed(exponent: float, rows: int) -> None:
    """By Minkowski's inequality: not above 1 once the update before it was below 1, whatever the gradient is."""
    spike = drawn(8, 8, seed=999) * 10**exponent
    spike[rows:] = 0.0
    assert updates(StableAdamW, spike)[0][0] <= 1


def test_a_sudden_large_gradient_is_not_tamed_by_adamw() -> None:
    spike = drawn(8, 8, seed=999) * 1e6
    assert updates(torch.optim.AdamW, spike)[0][0] > 1.5
    (update,), optimizer = updates(StableAdamW, spike)
    assert update == pytest.approx(0.1, rel=1e-3)  # its own share alone, 1 - beta1
    assert next(iter(optimizer.rms.values())).item() > 15


def test_steps_after_a_single_spike_are_adamws() -> None:
    """What the documentation says that it does not hold back."""
    grads = [drawn(8, 8, seed=999) * 1e6, *(drawn(8, 8, seed=1000 + step) for step in range(3))]
    mine, theirs = (updates(kind, *grads)[0] for kind in (StableAdamW, torch.optim.AdamW))
    assert mine[1:] == pytest.approx(theirs[1:], rel=1e-5)
    assert mine[1] > 1


@pytest.mark.parametrize("bad", [INF, NAN])
def test_a_gradient_that_is_not_finite_stays_within_its_tensor(bad: float) -> None:
    weights = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))]
    stepped(StableAdamW(weights), weights, [[torch.tensor([1.0, bad, 1.0])], [torch.ones(3)]])
    assert weights[0].isnan().all()
    assert weights[1].isfinite().all()


# --- an optimizer of torch


def trained(model: nn.Module, optimizer: Any, batches: Sequence[Any], scheduler: Any = None) -> None:
    for batch in batches:
        _runs.backward(model, batch)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        optimizer.zero_grad()


def same_bits(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_bits(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_bits, one, other))
    return bool(one == other)


def test_a_training_that_was_saved_goes_on_as_if_it_had_not_been() -> None:
    def begun() -> tuple[nn.Module, StableAdamW, torch.optim.lr_scheduler.LambdaLR]:
        model = _runs.bert()
        optimizer = StableAdamW(model.parameters(), lr=3e-3)
        return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)

    batches = list(_runs.batches(_runs.bert(), 20))
    model, optimizer, scheduler = begun()
    trained(model, optimizer, batches[:10], scheduler)
    buffer = io.BytesIO()
    torch.save([one.state_dict() for one in (model, optimizer, scheduler)], buffer)
    trained(model, optimizer, batches[10:], scheduler)
    buffer.seek(0)
    again = begun()
    for one, state in zip(again, torch.load(buffer, weights_only=True), strict=True):
        one.load_state_dict(state)
    trained(again[0], again[1], batches[10:], again[2])
    for one, other in zip((model, optimizer, scheduler), again, strict=True):
        assert same_bits(dict(one.state_dict()), dict(other.state_dict()))
    assert {kept["step"].item() for kept in optimizer.state.values()} == {20.0}


@pytest.mark.parametrize("copying", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])  # noqa: S301
def test_a_copy_goes_on_alike(copying: Callable[[Any], Any]) -> None:
    weight = nn.Parameter(drawn(5))
    optimizer = StableAdamW([weight], lr=0.1)
    stepped(optimizer, [weight], [[drawn(5, seed=step) for step in range(3)]])
    other_weight, other = copying((weight, optimizer))
    for one, its in ((optimizer, weight), (other, other_weight)):
        stepped(one, [its], [[drawn(5, seed=9)]])
    assert torch.equal(weight, other_weight)
    assert other.rms.keys() == {other_weight}


@pytest.mark.parametrize("fused", [False, True])
def test_adamw_and_it_load_each_others_state(fused: bool) -> None:
    options = {"lr": 1e-2, "eps": 1e-6}
    mine, kept = ([nn.Parameter(drawn(6, 4))] for _ in range(2))
    grads = [drawn(6, 4, seed=1) * 0.98**step for step in range(30)]
    throughout = torch.optim.AdamW(kept, **options, fused=fused)
    stepped(throughout, kept, [grads])
    first = torch.optim.AdamW(mine, **options, fused=fused)
    stepped(first, mine, [grads[:10]])
    second = StableAdamW(mine, lr=5.0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    stepped(second, mine, [grads[10:20]])
    third = torch.optim.AdamW(mine, lr=5.0)
    third.load_state_dict(copy.deepcopy(second.state_dict()))
    stepped(third, mine, [grads[20:]])
    torch.testing.assert_close(mine, kept, rtol=2e-6, atol=2e-6)
    assert third.state_dict()["state"].keys() == throughout.state_dict()["state"].keys()


def test_the_state_of_amsgrad_is_refused_and_nothing_is_taken_over() -> None:
    weights = [nn.Parameter(torch.ones(2))]
    theirs = torch.optim.AdamW(weights, amsgrad=True)
    stepped(theirs, weights, [[torch.ones(2)]])
    mine = StableAdamW(weights, lr=0.5)
    with pytest.raises(OptimizerError, match="amsgrad=True"):
        mine.load_state_dict(theirs.state_dict())
    assert mine.param_groups[0]["lr"] == 0.5
    assert not mine.state


def test_schedules_are_followed() -> None:
    rates = [0.1 * min(1.0, step / 4) * 0.9**step for step in range(12)]  # a warm-up from 0
    weight = nn.Parameter(drawn(4, 3))
    grads = [drawn(4, 3, seed=1 + step) * (20.0 if step == 8 else 1.0) for step in range(12)]
    end, _ = twin(weight, grads, rates)
    optimizer = StableAdamW([weight], lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rates[min(step, 11)])
    for grad in grads:
        stepped(optimizer, [weight], [[grad]])
        scheduler.step()
    torch.testing.assert_close(weight.detach().double(), end, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_learning_rate_may_be_a_tensor(shape: tuple[int, ...]) -> None:
    one, other = nn.Parameter(drawn(4)), nn.Parameter(drawn(4))
    for weight, lr in ((one, 0.1), (other, torch.full(shape, 0.1))):
        stepped(StableAdamW([weight], lr=lr), [weight], [[drawn(4, seed=step) for step in range(5)]])
    torch.testing.assert_close(one, other)


def test_groups_have_settings_of_their_own_and_may_come_later() -> None:
    weights = [nn.Parameter(drawn(4, seed=number)) for number in range(3)]
    grads: list[list[Tensor]] = [[drawn(4, seed=10 * number + step) for step in range(8)] for number in range(3)]
    wanted = [
        twin(weights[0], grads[0], 0.1, (0.9, 0.999), decay=0.0)[0],
        twin(weights[1], grads[1], 0.01, (0.5, 0.9), decay=0.2)[0],
        twin(weights[2], grads[2][4:], 0.1, (0.9, 0.999), eps=0.1, decay=0.0)[0],
    ]
    optimizer = StableAdamW(
        [
            {"params": [("first", weights[0])]},
            {"params": [("second", weights[1])], "lr": 0.01, "betas": (0.5, 0.9), "weight_decay": 0.2},
        ],
        lr=0.1,
        weight_decay=0.0,
    )
    stepped(optimizer, weights[:2], [row[:4] for row in grads[:2]])
    optimizer.add_param_group({"params": [("third", weights[2])], "eps": 0.1})
    stepped(optimizer, weights, [row[4:] for row in grads])
    for weight, end in zip(weights, wanted, strict=True):
        torch.testing.assert_close(weight.detach().double(), end, rtol=1e-5, atol=1e-5)


def test_uphill_is_downhill_on_the_negative() -> None:
    one, other = nn.Parameter(drawn(4)), nn.Parameter(drawn(4))
    grads = [drawn(4, seed=step) for step in range(5)]
    stepped(StableAdamW([one], lr=0.1, maximize=True), [one], [grads])
    stepped(StableAdamW([other], lr=0.1), [other], [[-grad for grad in grads]])
    assert torch.equal(one, other)


def test_a_closure_computes_gradients_first() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = StableAdamW([weight], lr=0.1, weight_decay=0.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    torch.testing.assert_close(weight.detach(), torch.full((2,), 0.9))


def test_what_has_no_gradient_is_left_alone() -> None:
    weights = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    weights[2].requires_grad_(False)
    optimizer = StableAdamW(weights, lr=0.1)
    optimizer.step()
    assert optimizer.rms == {}
    stepped(optimizer, weights, [[torch.ones(2)], [None], [None]])
    assert optimizer.rms.keys() == optimizer.state.keys() == {weights[0]}
    assert [torch.equal(weight, torch.ones(2)) for weight in weights] == [False, True, True]


def test_an_empty_tensor_has_nothing_that_could_outgrow() -> None:
    weight = nn.Parameter(torch.empty(0, 3))
    assert stepped(StableAdamW([weight]), [weight], [[torch.empty(0, 3)] * 2]) == [[0.0, 0.0]]


def test_entries_that_never_had_a_gradient_do_not_move() -> None:
    weight = nn.Parameter(torch.ones(4))
    told = stepped(StableAdamW([weight], lr=0.1, weight_decay=0.0), [weight], [[torch.tensor([1.0, 0, 0, 0])]])
    assert told == [[pytest.approx(0.5)]]  # they count in the mean
    torch.testing.assert_close(weight.detach(), torch.tensor([0.9, 1.0, 1.0, 1.0]))


@pytest.mark.parametrize("scale", [1e-25, 1e18])
def test_squares_that_leave_the_range_of_epsilon_do_not(scale: float) -> None:
    """The square of a small epsilon is 0 in float32."""
    weight = nn.Parameter(torch.ones(4))
    optimizer = StableAdamW([weight], lr=0.1, eps=1e-30)
    told = stepped(optimizer, [weight], [[torch.zeros(4), torch.full((4,), scale)]])
    assert weight.isfinite().all()
    assert all(map(math.isfinite, told[0]))


@pytest.mark.parametrize("foreach", [None, True, False])
def test_bfloat16_is_float32_that_is_rounded_once(foreach: bool | None) -> None:
    dtype = torch.bfloat16
    narrow = [nn.Parameter(drawn(5, 3, dtype=dtype)), nn.Parameter(drawn(9, dtype=dtype))]
    wide = [nn.Parameter(weight.detach().float()) for weight in narrow]
    mine, theirs = StableAdamW(narrow, lr=0.1, foreach=foreach), StableAdamW(wide, lr=0.1, foreach=foreach)
    for step in range(30):
        grads = [[drawn(*weight.shape, seed=step, dtype=dtype)] for weight in narrow]
        stepped(mine, narrow, grads)
        stepped(theirs, wide, [[grad.float() for grad in row if grad is not None] for row in grads])
        for low, high in zip(narrow, wide, strict=True):
            for name in ("exp_avg", "exp_avg_sq"):
                kept = theirs.state[high][name]
                kept.copy_(kept.to(dtype))
                assert mine.state[low][name].dtype == dtype
                assert torch.equal(mine.state[low][name].float(), kept)
            high.data.copy_(high.detach().to(dtype))
            assert torch.equal(low.detach().float(), high.detach())


LAYOUTS: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "gaps": lambda: (drawn(3, 8)[:, :4], drawn(3, 4, seed=1)),
    "transposed": lambda: (drawn(6, 4), drawn(4, 6, seed=1).t()),
    "channels last": lambda: (drawn(2, 3, 4, 5).to(memory_format=torch.channels_last), drawn(2, 3, 4, 5, seed=1)),
    "expanded": lambda: (torch.zeros(4), torch.full((1,), 3.0).expand(4)),
}


@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_do_not_matter_and_gradients_are_only_read(layout: str, foreach: bool | None) -> None:
    start, grad = LAYOUTS[layout]()
    weight = nn.Parameter(start)
    end, _ = twin(weight, [grad] * 3, 0.1)
    before = grad.clone()
    optimizer = StableAdamW([weight], lr=0.1, foreach=foreach)
    weight.grad = grad
    for _ in range(3):
        optimizer.step()
    torch.testing.assert_close(weight.detach().double(), end, rtol=1e-5, atol=1e-6)
    assert torch.equal(grad, before)


def test_a_default_dtype_or_device_changes_nothing() -> None:
    found = []
    for default, place in ((torch.float32, "cpu"), (torch.float64, "meta")):
        weight = nn.Parameter(drawn(3))
        optimizer = StableAdamW([weight], lr=0.1)
        weight.grad = torch.ones(3)
        torch.set_default_dtype(default)
        try:
            with torch.device(place):
                optimizer.step()
        finally:
            torch.set_default_dtype(torch.float32)
        found.append((weight.detach(), dict(optimizer.state[weight])))
    assert same_bits(found[0], found[1])


@pytest.mark.parametrize("foreach", [None, True, False])
def test_nothing_waits_for_the_device(foreach: bool | None) -> None:
    # A value, size or truth of a meta tensor cannot be had at all; these take the way of a GPU.
    weights = [nn.Parameter(torch.empty(shape, device="meta")) for shape in ((3, 4), (5,), (), (0,))]
    optimizer = StableAdamW(weights, foreach=foreach)
    for _ in range(2):
        for weight in weights:
            weight.grad = torch.empty_like(weight)
        optimizer.step()
    assert all(optimizer.rms[weight].is_meta for weight in weights)
    weight = nn.Parameter(torch.ones(3))
    optimizer = StableAdamW([weight], foreach=foreach)
    weight.grad = torch.ones(3)
    with NoSynchronisation():
        optimizer.step()


def test_what_is_updated_together_is_alike_and_not_too_long() -> None:
    """On a CPU many tensors and large ones, of two dtypes, are cut into lists; nothing is forgotten."""
    weights = [nn.Parameter(torch.zeros(shape)) for shape in ((400, 400), (7,), (300, 300), (2,), (300, 300), (1,))]
    weights += [nn.Parameter(torch.zeros(3, dtype=torch.bfloat16)), nn.Parameter(torch.zeros(3, dtype=torch.float64))]
    assert [len(one) for one in _by_tensor.alike(weights, None)] == [1, 4, 1, 1, 1]
    assert [len(one) for one in _by_tensor.alike(weights, True)] == [6, 1, 1]
    assert [len(one) for one in _by_tensor.alike(weights, False)] == [1] * 8
    stepped(StableAdamW(weights, lr=0.1), weights, [[torch.ones_like(weight)] for weight in weights])
    assert all(torch.equal(weight.float(), torch.full(weight.shape, weight.flatten()[0].item())) for weight in weights)
    assert all(weight.flatten()[0].item() == pytest.approx(-0.1, rel=4e-3) for weight in weights)


# --- with others


def test_a_gradient_scaler_divides_before_it() -> None:
    model, other = _runs.bert(), _runs.bert()
    mine, theirs = (StableAdamW(one.parameters(), lr=1e-3, eps=1e-5) for one in (model, other))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for batch in _runs.batches(model, 5):
        scaler.scale(model(**batch).loss).backward()
        scaler.step(mine)
        scaler.update()
        mine.zero_grad()
        trained(other, theirs, [batch])
    _runs.assert_alike(_runs.weights(model), _runs.weights(other))


@pytest.mark.parametrize("way", ["clipped", "in backward"])
def test_it_can_be_clipped_and_stepped_in_backward(way: str) -> None:
    def make(parameters: list[Tensor]) -> StableAdamW:
        return StableAdamW(parameters, lr=1e-3, eps=1e-5)

    wanted = _runs.clip_then_step(_runs.bert, make, 0.05, 5)
    model = _runs.bert()
    parts = components(model)
    optimizer: Any = (
        clipped(make(list(model.parameters())), parts, max_norm=0.05)
        if way == "clipped"
        else step_in_backward(parts, make, 0.05)
    )
    trained(model, optimizer, list(_runs.batches(model, 5)))
    _runs.assert_alike(_runs.weights(model), wanted, tolerance=1e-6)


def trainer(folder: Path, steps: int) -> Trainer:
    model = _models.bert()
    optimizer = StableAdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 4)
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        save_steps=2,
        logging_steps=1,
        max_grad_norm=0,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    return Trainer(model, args, train_dataset=_models.Rows(16), optimizers=(optimizer, schedule))


def test_a_trainer_takes_it_and_resumes_it(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", 4)
    whole.train()
    again = trainer(tmp_path / "again", 4)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert same_bits(dict(whole.model.state_dict()), dict(again.model.state_dict()))
    assert {kept["step"].item() for kept in whole.optimizer.state_dict()["state"].values()} == {4.0}
    rates = [entry["learning_rate"] for entry in whole.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([1e-2 * (1 - step / 4) for step in range(4)])
    assert not same_bits(dict(whole.model.state_dict()), dict(_models.bert().state_dict()))


# --- sharded

PLACED: dict[str, tuple[Placement, Placement]] = {  # of the parameter, and of its gradient
    "rows": (Shard(0), Shard(0)),
    "columns": (Shard(1), Shard(1)),
    "replicated": (Replicate(), Replicate()),
    "shares of a sum": (Replicate(), Partial()),
}
STEPS = 4


def sharded_weight() -> Tensor:
    return drawn(5, 3)  # the second of two ranks has fewer rows and columns


def sharded_grads() -> list[Tensor]:
    grads = [drawn(5, 3, seed=1 + step) for step in range(STEPS)]
    grads[-1] *= 20
    grads[-1][:3] *= 10  # so that the ranks' own means differ
    return grads


def on_a_rank(foreach: bool | None) -> tuple[list[Tensor], list[list[float]], list[int]]:
    """Step on sharded weights; return the whole ones, R of every step, and how many reductions each step took."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    weights = [nn.Parameter(distribute_tensor(sharded_weight(), mesh, [place])) for place, _ in PLACED.values()]
    weights.append(nn.Parameter(sharded_weight()))  # one that is not sharded, beside them
    weights.append(nn.Parameter(distribute_tensor(sharded_weight()[:1], mesh, [Shard(0)])))  # nothing of it on rank 1
    optimizer = StableAdamW(weights, lr=0.1, eps=0.1, foreach=foreach)  # else no factor on a gradient is seen
    told, counts = [], []
    for grad in sharded_grads():
        for weight, (_, place) in zip(weights, PLACED.values(), strict=False):
            share = grad / dist.get_world_size() if place.is_partial() else None
            weight.grad = (
                distribute_tensor(grad, mesh, [place]) if share is None else DTensor.from_local(share, mesh, [place])
            )
        weights[-2].grad = grad.clone()
        weights[-1].grad = distribute_tensor(grad[:1], mesh, [Shard(0)])
        with CommDebugMode() as counted:
            optimizer.step()
        told.append([optimizer.rms[weight].item() for weight in weights])
        counts.append(sum(number for kind, number in counted.get_comm_counts().items() if "all" in str(kind)))
    whole = [weight.full_tensor() if isinstance(weight, DTensor) else weight for weight in weights]
    return [weight.detach() for weight in whole], told, counts


@pytest.mark.slow
@pytest.mark.parametrize("foreach", [None, False])
def test_the_mean_is_that_of_the_whole_tensor(foreach: bool | None) -> None:
    end, rms = twin(sharded_weight(), sharded_grads(), 0.1, eps=0.1)
    first, row = twin(sharded_weight()[:1], [grad[:1] for grad in sharded_grads()], 0.1, eps=0.1)
    assert rms[-1] > 1.5
    for weights, told, counts in _ranks.run(2, on_a_rank, foreach):
        for weight in weights[:-1]:
            torch.testing.assert_close(weight.double(), end, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(weights[-1].double(), first, rtol=1e-5, atol=1e-6)
        assert told == [pytest.approx([each] * 5 + [last], rel=1e-5) for each, last in zip(rms, row, strict=True)]
        # Rows and columns one each, and the sum that nobody has taken; rows of two weights go together.
        assert counts == [3 if foreach is None else 4] * STEPS


def trained_by_fsdp2() -> dict[str, Tensor]:
    model = _jobs.wrapped("bert", "fsdp2")
    optimizer = StableAdamW(model.parameters(), lr=1e-3, eps=1e-5)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for batch in _runs.batches(model, 4):
        trained(model, optimizer, [{key: value.chunk(ranks)[rank] for key, value in batch.items()}])
    return {name: weight.full_tensor() for name, weight in _runs.weights(model).items() if isinstance(weight, DTensor)}


def test_fsdp2_trains_as_one_process_does() -> None:
    model = _runs.bert()
    trained(model, StableAdamW(model.parameters(), lr=1e-3, eps=1e-5), list(_runs.batches(model, 4)))
    for weights in _ranks.run(2, trained_by_fsdp2):
        _runs.assert_alike(weights, _runs.weights(model), tolerance=1e-5)


# --- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0, but a learning rate is 0 or more"),
        ({"lr": NAN}, "lr=nan"),
        ({"lr": torch.tensor(-1.0)}, "lr=-1.0"),
        ({"lr": torch.ones(2)}, "lr of shape .2., but a group has one"),
        ({"betas": (1.0, 0.9)}, "betas=.1.0, 0.9., but decays"),
        ({"betas": (0.9, -0.1)}, "betas"),
        ({"betas": (0.9,)}, "betas"),
        ({"eps": 0.0}, "eps=0.0, but entries whose gradient was 0"),
        ({"eps": NAN}, "eps=nan"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"amsgrad": True}, "amsgrad=True"),
    ],
)
def test_settings_out_of_range_are_refused_in_groups_too(options: dict[str, Any], message: str) -> None:
    weights = [nn.Parameter(torch.ones(2))]
    with pytest.raises(OptimizerError, match=message):
        StableAdamW([{"params": weights, **options}])
    if "amsgrad" not in options:
        with pytest.raises(OptimizerError, match=message):
            StableAdamW(weights, **options)
    optimizer = StableAdamW(weights)
    with pytest.raises(OptimizerError, match=message):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))], **options})
    assert len(optimizer.param_groups) == 1


def test_what_torch_refuses_is_refused() -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        StableAdamW([])


@pytest.mark.parametrize("kind", ["sparse", "complex"])
def test_gradients_of_another_kind_are_refused_before_anything_changes(kind: str) -> None:
    weights = [
        nn.Parameter(torch.ones(3)),
        nn.Parameter(torch.ones(3, dtype=torch.complex64 if kind == "complex" else None)),
    ]
    optimizer = StableAdamW(weights)
    weights[0].grad = torch.ones(3)
    weights[1].grad = torch.ones_like(weights[1]).to_sparse() if kind == "sparse" else torch.ones_like(weights[1])
    with pytest.raises(OptimizerError, match=f"a {kind} gradient, of a parameter of shape .3."):
        optimizer.step()
    assert all(torch.equal(weight, torch.ones_like(weight)) for weight in weights)
    assert not optimizer.state
