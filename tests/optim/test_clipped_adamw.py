"""Clipping inside of AdamW is clip_grad_norm_ and then torch's AdamW."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.clipping._bag import INF, NAN, Bag, bits, drawn
from tests.optim import _runs
from tests.optim._ways import kernels
from torch import Tensor, nn

from evenkeel import clip_grad_norm_, components
from evenkeel.clipping.thresholds import (
    Budget,
    CappedEma,
    Cosine,
    Ema,
    Grouped,
    Linear,
    Percentile,
    Threshold,
    WeightRelative,
    ZScore,
)
from evenkeel.errors import ComponentError, GradientError, OptimizerError, ThresholdError
from evenkeel.optim import ClippedAdamW, _clipped_adamw

__all__ = ["kernels"]

THRESHOLDS: dict[str, Callable[[], Any]] = {
    "a number": lambda: 0.05,
    "nothing clipped": lambda: INF,
    "by role": lambda: {"query": 0.02, "*.bias": 0.01, "*": 0.05},
    "ema": lambda: Ema(1.02, warmup=0),
    "ema with warm-up": lambda: Ema(1.02, warmup=20, warmup_max_norm=0.5),
    "capped ema": lambda: CappedEma(total_steps=100),
    "percentile": lambda: Percentile(20, window=32),
    "z-score": lambda: ZScore(1.0, alpha=0.9, warmup=5),
    "budget": lambda: Budget(0.3),
    "weights": lambda: WeightRelative(0.01),
    "rows": lambda: WeightRelative(0.01, per="row"),
    "linear": lambda: Linear(1.0, 0.01, steps=50),
    "cosine": lambda: Cosine(1.0, 0.01, steps=50),
    "grouped": lambda: Grouped(Percentile(20), by="role"),
}


def trained(model: nn.Module, optimizer: Any, steps: int) -> dict[str, Tensor]:
    for batch in _runs.batches(model, steps):
        _runs.backward(model, batch)
        optimizer.step()
        optimizer.zero_grad()
    return _runs.weights(model)


def ours(
    make: Callable[[], nn.Module], max_norm: Any, steps: int, by: Any = "tensor", **options: Any
) -> dict[str, Tensor]:
    model = make()
    optimizer = ClippedAdamW(components(model, by), max_norm=max_norm, **(_runs.ADAMW | options))
    return trained(model, optimizer, steps)


# --- the same weights


@pytest.mark.parametrize("steps", [15, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_it_is_clipping_and_then_adamw(threshold: str, steps: int) -> None:
    make = THRESHOLDS[threshold]
    theirs = _runs.clip_then_step(_runs.bert, _runs.adamw, make(), steps)
    _runs.assert_alike(ours(_runs.bert, make(), steps), theirs)


@pytest.mark.parametrize("steps", [10, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("by", ["tensor", pytest.param("layer", marks=pytest.mark.slow), "global"])
@pytest.mark.parametrize("model", _runs.MODELS)
def test_on_every_architecture_and_partition(model: str, by: Any, steps: int) -> None:
    make = _runs.MODELS[model]
    theirs = _runs.clip_then_step(make, _runs.adamw, 0.05, steps, by)
    _runs.assert_alike(ours(make, 0.05, steps, by), theirs)


@pytest.mark.parametrize(
    "options",
    [
        {"amsgrad": True},
        {"maximize": True},
        {"foreach": True},
        {"fused": True},
        {"fused": False},
        {"weight_decay": 0.0, "eps": 1e-3, "betas": (0.5, 0.7)},
        {"lr": torch.tensor(1e-3)},
    ],
)
def test_options_of_adamw(options: dict[str, Any]) -> None:
    plain = {key: value for key, value in options.items() if key not in ("foreach", "fused")}
    theirs = _runs.clip_then_step(_runs.bert, lambda ps: _runs.adamw(ps, **plain), 0.05, 20)
    _runs.assert_alike(ours(_runs.bert, 0.05, 20, **options), theirs)


@pytest.mark.parametrize("norm_type", [1.0, 3.0, INF])
def test_other_norms(norm_type: float) -> None:
    theirs = _runs.clip_then_step(_runs.bert, _runs.adamw, 0.05, 15, norm_type=norm_type)
    _runs.assert_alike(ours(_runs.bert, 0.05, 15, norm_type=norm_type), theirs)


def test_the_adam_of_the_published_bert_corrects_no_bias() -> None:
    """One entry after the other, in Python's double precision."""
    grads = [drawn(3, seed=seed) for seed in range(5)]
    model = Bag(torch.zeros(3))
    optimizer = ClippedAdamW(
        model, lr=0.1, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.01, max_norm=1.0, correct_bias=False
    )
    (parameter,) = model.parameters()
    wanted, mean, square = [0.0] * 3, [0.0] * 3, [0.0] * 3
    for grad in grads:
        parameter.grad = grad.clone()
        optimizer.step()
        norm = sum(entry**2 for entry in grad.tolist()) ** 0.5
        for index, entry in enumerate(grad.tolist()):
            entry *= min(1.0, 1.0 / (norm + 1e-6))
            mean[index] = 0.9 * mean[index] + 0.1 * entry
            square[index] = 0.99 * square[index] + 0.01 * entry**2
            wanted[index] -= 0.1 * (mean[index] / (square[index] ** 0.5 + 1e-6) + 0.01 * wanted[index])
    assert parameter.tolist() == pytest.approx(wanted, rel=1e-5)
    assert optimizer.state[parameter]["step"].item() == 5


@given(
    st.lists(st.sampled_from([(3,), (40, 30), (0,), (1025,), ()]), min_size=1, max_size=4),
    st.sampled_from([1e-3, 0.5, INF]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
@pytest.mark.filterwarnings("ignore:.*have no entries:UserWarning")
def test_shapes_and_dtypes(shapes: list[tuple[int, ...]], max_norm: float, dtype: torch.dtype) -> None:
    models = [Bag(*[torch.zeros(shape, dtype=dtype) for shape in shapes]) for _ in range(2)]
    parts = [components(model) for model in models]
    mine = ClippedAdamW(parts[0], lr=0.1, max_norm=max_norm)
    theirs = torch.optim.AdamW(models[1].parameters(), lr=0.1)
    for step in range(3):
        for model in models:
            for seed, parameter in enumerate(model.parameters()):
                parameter.grad = drawn(*parameter.shape, seed=10 * step + seed, dtype=dtype)
        mine.step()
        clip_grad_norm_(parts[1], max_norm)
        theirs.step()
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_the_kernels_never_write_a_gradient(kernels: bool) -> None:
    model = _runs.bert()
    optimizer = ClippedAdamW(model, max_norm=1e-4)
    _runs.backward(model, next(_runs.batches(model, 1)))
    before = [bits(parameter.grad) for parameter in model.parameters()]
    optimizer.step()
    same = [bits(parameter.grad) for parameter in model.parameters()] == before
    assert same is kernels


def test_norms_of_the_latest_step_are_those_before_clipping() -> None:
    model, twin = _runs.bert(), _runs.bert()
    optimizer = ClippedAdamW(model, max_norm={"query": 0.01, "*": 0.05})
    assert optimizer.last is None
    for one in (model, twin):
        _runs.backward(one, next(_runs.batches(one, 1)))
    optimizer.step()
    wanted = clip_grad_norm_(twin, {"query": 0.01, "*": 0.05})
    assert optimizer.last is not None
    assert optimizer.last.names == wanted.names
    for name in ("norms", "thresholds", "coefficients", "total_norm"):
        torch.testing.assert_close(getattr(optimizer.last, name), getattr(wanted, name), rtol=1e-5, atol=1e-12)


# --- what is not finite


@pytest.mark.parametrize("bad", [NAN, INF])
def test_what_is_not_finite_is_propagated_silenced_or_refused(bad: float) -> None:
    grads = [torch.tensor([bad, 1.0]), torch.tensor([3.0, 4.0])]
    for nonfinite in ("propagate", "zero"):
        models = [Bag(*[grad.clone() for grad in grads]) for _ in range(2)]
        for model in models:
            for parameter in model.parameters():
                parameter.data.fill_(1.0)
        mine = ClippedAdamW(models[0], lr=0.1, max_norm=1.0, nonfinite=nonfinite)
        theirs = torch.optim.AdamW(models[1].parameters(), lr=0.1)
        for _ in range(2):
            for model in models:
                for parameter, grad in zip(model.parameters(), grads, strict=True):
                    parameter.grad = grad.clone()
            mine.step()
            clip_grad_norm_(models[1], 1.0, nonfinite=nonfinite)  # type: ignore[arg-type]
            theirs.step()
        for one, other in zip(*(model.parameters() for model in models), strict=True):
            torch.testing.assert_close(one, other, equal_nan=True)
    model = Bag(*grads)
    before = [bits(parameter) for parameter in model.parameters()]
    with pytest.raises(GradientError, match="p0"):
        ClippedAdamW(model, max_norm=1.0, nonfinite="error").step()
    assert [bits(parameter) for parameter in model.parameters()] == before


# --- a true optimizer


def test_its_state_is_that_of_adamw_both_ways() -> None:
    first = _runs.bert()
    mine = ClippedAdamW(first, lr=1e-3, eps=1e-5, max_norm=INF)
    trained(first, mine, 5)
    second = copy.deepcopy(first)
    theirs = torch.optim.AdamW(second.parameters(), lr=1.0)
    theirs.load_state_dict(copy.deepcopy(mine.state_dict()))  # torch takes the very tensors
    assert theirs.state_dict()["param_groups"] == mine.state_dict()["param_groups"]
    assert set(mine.state_dict()) == {"state", "param_groups"}
    third = copy.deepcopy(first)
    back = ClippedAdamW(third, lr=1.0, max_norm=INF)
    back.load_state_dict(copy.deepcopy(theirs.state_dict()))
    _runs.assert_alike(trained(third, back, 5), trained(second, theirs, 5), tolerance=1e-6)


def test_a_saved_state_goes_on_as_if_nothing_had_been() -> None:
    whole = _runs.bert()
    optimizer = ClippedAdamW(whole, lr=1e-3, eps=1e-5, max_norm=Percentile(30, window=8))
    trained(whole, optimizer, 6)
    resumed = copy.deepcopy(whole)
    other = ClippedAdamW(resumed, lr=1e-3, eps=1e-5, max_norm=Percentile(30, window=8))
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    first, second = trained(whole, optimizer, 6), trained(resumed, other, 6)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_state_of_another_threshold_is_refused() -> None:
    model = _runs.bert()
    learnt = ClippedAdamW(model, max_norm=Percentile(30))
    trained(model, learnt, 1)
    with pytest.raises(ThresholdError, match="saved with the threshold Percentile and this one has Ema"):
        ClippedAdamW(model, max_norm=Ema(warmup=0)).load_state_dict(learnt.state_dict())


def test_groups_have_settings_of_their_own() -> None:
    model, twin = _runs.bert(), _runs.bert()

    def groups(one: nn.Module) -> list[dict[str, Any]]:
        named = list(one.named_parameters())
        return [
            {"params": [p for n, p in named if not n.endswith("bias")], "weight_decay": 0.3},
            {"params": [p for n, p in named if n.endswith("bias")], "weight_decay": 0.0, "lr": 3e-3},
        ]

    mine = ClippedAdamW(groups(model), lr=1e-3, eps=1e-5, max_norm=0.05, parts=components(model, "layer"))
    theirs = torch.optim.AdamW(groups(twin), lr=1e-3, eps=1e-5)
    for batch in _runs.batches(model, 30):
        for one in (model, twin):
            _runs.backward(one, batch)
        clip_grad_norm_(components(twin, "layer"), 0.05)
        for optimizer in (mine, theirs):
            optimizer.step()
            optimizer.zero_grad()
    _runs.assert_alike(_runs.weights(model), _runs.weights(twin))


def test_groups_may_hold_components() -> None:
    model = _runs.bert()
    parts = components(model)
    optimizer = ClippedAdamW(
        [{"params": parts.select(kind="weight"), "weight_decay": 0.1}, {"params": parts.select(kind="bias")}],
        max_norm=0.05,
    )
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    assert len(optimizer.parts) == len(parts)


def test_a_schedule_moves_its_learning_rate() -> None:
    model, twin = _runs.bert(), _runs.bert()
    mine = ClippedAdamW(model, lr=1e-2, eps=1e-5, weight_decay=0.0, max_norm=0.05)
    theirs = torch.optim.AdamW(twin.parameters(), lr=1e-2, eps=1e-5, weight_decay=0.0)
    schedules = [torch.optim.lr_scheduler.LinearLR(one, 1.0, 0.0, 20) for one in (mine, theirs)]
    for batch in _runs.batches(model, 20):
        for one in (model, twin):
            _runs.backward(one, batch)
        clip_grad_norm_(twin, 0.05)
        for optimizer in (mine, theirs):
            optimizer.step()
            optimizer.zero_grad()
        for schedule in schedules:
            schedule.step()
    assert mine.param_groups[0]["lr"] == 0.0
    _runs.assert_alike(_runs.weights(model), _runs.weights(twin))


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("overflow", [False, True])
def test_a_gradient_scaler_divides_and_skips(fused: bool | None, overflow: bool) -> None:
    model, twin = _runs.bert(), _runs.bert()
    mine = ClippedAdamW(model, lr=1e-3, eps=1e-5, max_norm=0.05, fused=fused)
    theirs = torch.optim.AdamW(twin.parameters(), lr=1e-3, eps=1e-5)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    assert scaler.is_enabled()
    steps = 0
    for step, batch in enumerate(_runs.batches(model, 8)):
        scaler.scale(model(**batch).loss).backward()
        spoilt = overflow and step == 4
        if spoilt:
            next(model.parameters()).grad.view(-1)[0] = INF  # type: ignore[union-attr]
        scaler.step(mine)
        scaler.update()
        mine.zero_grad()
        if spoilt:
            continue
        steps += 1
        _runs.backward(twin, batch)
        clip_grad_norm_(twin, 0.05)
        theirs.step()
        theirs.zero_grad()
    _runs.assert_alike(_runs.weights(model), _runs.weights(twin))
    assert {int(state["step"]) for state in mine.state.values()} == {steps}


def test_a_closure_computes_what_is_clipped() -> None:
    model, twin = _runs.bert(), _runs.bert()
    batch = next(_runs.batches(model, 1))
    mine = ClippedAdamW(model, eps=1e-5, max_norm=0.05)
    theirs = torch.optim.AdamW(twin.parameters(), eps=1e-5)

    def closure() -> Tensor:
        mine.zero_grad()
        loss: Tensor = model(**batch).loss
        loss.backward()
        return loss

    loss = mine.step(closure)
    _runs.backward(twin, batch)
    clip_grad_norm_(twin, 0.05)
    theirs.step()
    assert loss.item() == pytest.approx(twin(**batch).loss.item(), rel=0.2)
    _runs.assert_alike(_runs.weights(model), _runs.weights(twin), tolerance=1e-6)


def test_parameters_without_a_gradient_are_left_alone() -> None:
    model = Bag(torch.ones(2), None)
    mine = ClippedAdamW(model, max_norm=0.1)
    before = [parameter.clone() for parameter in model.parameters()]
    mine.step()
    assert [torch.equal(p, was) for p, was in zip(model.parameters(), before, strict=True)] == [False, True]
    assert list(mine.state) == [next(model.parameters())]
    mine.zero_grad()
    mine.step()  # no gradient at all: as in torch, nothing happens


def test_a_layer_that_is_released_can_be_added() -> None:
    model = _runs.bert()
    parts = components(model)
    head = parts.select(role="head")
    optimizer = ClippedAdamW([{"params": head}], max_norm=0.05, parts=parts)
    optimizer.add_param_group({"params": parts.select(layer=1), "lr": 1e-4})
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-4]
    with pytest.raises(ComponentError, match="belong to no component, one of shape"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(7))]})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
def test_a_compiled_step_does_the_same() -> None:
    torch._dynamo.reset()
    model, twin = _runs.bert(), _runs.bert()
    mine = ClippedAdamW(model, lr=1e-3, eps=1e-5, max_norm=0.05)
    step = torch.compile(mine.step, backend="aot_eager")
    theirs = torch.optim.AdamW(twin.parameters(), lr=1e-3, eps=1e-5)
    for batch in _runs.batches(model, 3):
        for one in (model, twin):
            _runs.backward(one, batch)
        step()
        clip_grad_norm_(twin, 0.05)
        theirs.step()
        for optimizer in (mine, theirs):
            optimizer.zero_grad()
    torch._dynamo.reset()
    _runs.assert_alike(_runs.weights(model), _runs.weights(twin))


def test_this_is_the_way_that_it_goes(kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else most of the tests above would compare torch with itself."""
    taken: list[str] = []
    real = _clipped_adamw.update_by_torch
    monkeypatch.setattr(
        _clipped_adamw, "update_by_torch", lambda *args, **kw: (taken.append("torch"), real(*args, **kw))
    )
    for max_norm in (0.05, Ema(warmup=0)):
        ours(_runs.bert, max_norm, 2)
    assert (not taken) is kernels


# --- bad input


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda model: ClippedAdamW(model, max_norm=1.0, differentiable=True), OptimizerError, "differentiable=True"),
        (lambda model: ClippedAdamW(model, max_norm=-1.0), ThresholdError, "no positive number"),
        (lambda model: ClippedAdamW(model, max_norm={"nobody": 1.0, "*": 1.0}), ThresholdError, "'nobody'"),
        (lambda model: ClippedAdamW(model, max_norm=1.0, norm_type=0), GradientError, "norm_type"),
        (lambda model: ClippedAdamW(model, max_norm=1.0, nonfinite="ignore"), GradientError, "nonfinite"),
        (lambda model: ClippedAdamW(model.parameters(), max_norm=1.0), ComponentError, "belong to no component"),
        (lambda model: ClippedAdamW([], max_norm=1.0), ComponentError, "no parameters"),
        (lambda model: ClippedAdamW(iter(()), max_norm=1.0), ComponentError, "a generator was used up"),
        (lambda model: ClippedAdamW([{"params": ["weight"]}], max_norm=1.0), ComponentError, "given a str where"),
        (lambda model: ClippedAdamW(model, lr=-1.0, max_norm=1.0), ValueError, "learning rate"),
        (
            lambda model: ClippedAdamW([{"params": components(model)}, {"params": components(model)}], max_norm=1.0),
            ComponentError,
            "share entries",
        ),
    ],
)
def test_bad_input_is_refused_before_training(
    make: Callable[[nn.Module], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(nn.Linear(2, 2))


def test_sparse_gradients_are_refused_as_adam_refuses_them() -> None:
    model = nn.Embedding(5, 3, sparse=True)
    model(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        ClippedAdamW(model, max_norm=0.1).step()


def test_every_threshold_is_among_those_tried() -> None:
    from evenkeel import thresholds

    kinds = {type(make()) for make in THRESHOLDS.values()}
    public = {getattr(thresholds, name) for name in thresholds.__all__}
    concrete = {kind for kind in public if isinstance(kind, type) and issubclass(kind, Threshold)} - {Threshold}
    assert {kind.__name__ for kind in concrete - kinds} <= {"Fixed"}


# --- what an attack found


def both_ways(
    parameter: Tensor, grads: list[Tensor], max_norm: float = 0.5, **options: Any
) -> tuple[nn.Parameter, nn.Parameter]:
    """Step on given gradients, by the optimizer and by clipping and AdamW; parameters keep their strides."""
    found = []
    for way in ("ours", "theirs"):
        model = nn.Module()
        model.p = nn.Parameter(parameter.detach().as_strided(parameter.shape, parameter.stride()).clone())
        if model.p.stride() != parameter.stride():
            whole = torch.zeros(parameter.untyped_storage().nbytes() // 4)
            model.p = nn.Parameter(whole.as_strided(parameter.shape, parameter.stride()).copy_(parameter))
        optimizer: Any = (
            ClippedAdamW(model, lr=0.1, max_norm=max_norm, **options)
            if way == "ours"
            else torch.optim.AdamW(model.parameters(), lr=0.1, **options)
        )
        for grad in grads:
            model.p.grad = torch.empty(0).set_(grad.untyped_storage().clone(), 0, grad.shape, grad.stride())  # type: ignore[call-overload]
            if way == "theirs":
                clip_grad_norm_(model, max_norm)
            optimizer.step()
        found.append(model.p)
    return found[0], found[1]


STRIDES: dict[str, Callable[[], tuple[Tensor, list[Tensor]]]] = {
    "gaps": lambda: (drawn(3, 8)[:, :4], [drawn(3, 4, seed=seed) for seed in (1, 2, 3)]),
    "a transposed gradient": lambda: (drawn(6, 4), [drawn(4, 6, seed=seed).t() for seed in (1, 2, 3)]),
    "a transposed parameter": lambda: (drawn(4, 6).t(), [drawn(6, 4, seed=seed) for seed in (1, 2, 3)]),
    "channels last": lambda: (
        drawn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        [drawn(2, 3, 4, 5, seed=seed) for seed in (1, 2, 3)],
    ),
    "an expanded gradient": lambda: (torch.zeros(4), [torch.full((1,), 3.0).expand(4)]),
}


@pytest.mark.parametrize("options", [{}, {"foreach": False}, {"foreach": True}])
@pytest.mark.parametrize("layout", STRIDES)
def test_strides_do_not_matter(layout: str, options: dict[str, Any]) -> None:
    parameter, grads = STRIDES[layout]()
    mine, theirs = both_ways(parameter, grads, **options)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_nothing_beside_a_parameter_is_written() -> None:
    memory = torch.arange(24.0).view(3, 8)
    model = nn.Module()
    model.p = nn.Parameter(memory[:, :4])
    optimizer = ClippedAdamW(model, lr=0.1, max_norm=0.5)
    for _ in range(3):
        model.p.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(memory[:, 4:], torch.arange(24.0).view(3, 8)[:, 4:])
    assert not torch.equal(memory[2, :4], torch.arange(24.0).view(3, 8)[2, :4])


def test_a_negative_view_is_read_with_its_sign() -> None:
    model = nn.Module()
    model.p = nn.Parameter(torch.tensor(0.5))
    optimizer = ClippedAdamW(model, lr=0.1, eps=1.0, max_norm=10.0)
    (torch.complex(torch.tensor(1.0), model.p).conj() * (2 + 3j)).imag.backward()
    assert model.p.grad.is_neg()
    downhill = model.p.item() - 0.1 * model.p.grad.item()
    optimizer.step()
    assert (model.p.item() > 0.5) == (downhill > 0.5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_default_dtype_changes_nothing(dtype: torch.dtype) -> None:
    results = []
    for default in (torch.float32, dtype):
        model = Bag(torch.ones(3))
        (parameter,) = model.parameters()
        torch.set_default_dtype(default)
        try:
            ClippedAdamW(model, max_norm=0.1).step()
        finally:
            torch.set_default_dtype(torch.float32)
        results.append(parameter.detach())
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-5)


def test_a_default_device_changes_nothing() -> None:
    model = Bag(torch.ones(3))
    optimizer = ClippedAdamW(model, max_norm=0.1)
    with torch.device("meta"):
        optimizer.step()
    assert next(model.parameters()).isfinite().all()


@pytest.mark.parametrize("copying", [copy.deepcopy, pickle.dumps])
def test_a_copy_which_would_lose_its_components_is_refused(copying: Callable[[Any], Any]) -> None:
    with pytest.raises(OptimizerError, match="cannot be copied or pickled"):
        copying(ClippedAdamW(nn.Linear(2, 2), max_norm=1.0))


def test_a_component_is_clipped_by_its_whole_norm_and_others_are_left_alone() -> None:
    model, twin = nn.Linear(2, 2), nn.Linear(2, 2)
    for one in (model, twin):
        (one(torch.ones(1, 2)) * 3).sum().backward()
    optimizer = ClippedAdamW([model.weight], parts=components(model, "global"), max_norm=0.5)
    optimizer.step()
    assert optimizer.last is not None
    assert optimizer.last.norms.item() == pytest.approx(clip_grad_norm_(components(twin, "global"), 0.5).norms.item())
    apart = ClippedAdamW([twin.weight], parts=components(twin), max_norm=1e-3)
    before = bits(twin.bias.grad)
    apart.step()
    assert bits(twin.bias.grad) == before
    assert apart.last is not None
    assert apart.last.names == ("weight",)


def test_an_error_counts_no_step() -> None:
    model = Bag(torch.ones(2), torch.tensor([NAN, 1.0]))
    optimizer = ClippedAdamW(model, max_norm=1.0, nonfinite="error")
    with pytest.raises(GradientError, match="not finite"):
        optimizer.step()
    assert {state["step"].item() for state in optimizer.state.values()} == {0.0}


def test_named_parameters_are_taken_as_torch_takes_them() -> None:
    model = nn.Linear(2, 2)
    optimizer = ClippedAdamW(model.named_parameters(), parts=components(model), max_norm=1.0)
    assert len(optimizer.param_groups[0]["params"]) == 2


def test_a_state_of_adamw_lets_a_threshold_begin_anew() -> None:
    model, threshold = _runs.bert(), Percentile(30)
    optimizer = ClippedAdamW(model, max_norm=threshold)
    trained(model, optimizer, 2)
    optimizer.load_state_dict(torch.optim.AdamW(model.parameters()).state_dict())
    assert threshold.state_dict()["names"] == []
