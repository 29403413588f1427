"""Stepping in backward gives the weights of clipping and stepping after it, and keeps no gradient."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests import _models
from tests._tiers import few
from tests.clipping._bag import NAN
from tests.optim import _runs
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from evenkeel import clip_grad_norm_, components
from evenkeel.clipping.thresholds import (
    Budget,
    CappedEma,
    Cosine,
    Ema,
    Grouped,
    Linear,
    Percentile,
    WeightRelative,
    ZScore,
)
from evenkeel.errors import ComponentError, GradientError, OptimizerError, ThresholdError
from evenkeel.optim import ClippedAdamW, InBackward, step_in_backward

OPTIMIZERS: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "adamw": _runs.adamw,
    "fused adamw": lambda ps: torch.optim.AdamW(ps, **_runs.ADAMW, fused=True),
    "sgd": _runs.sgd,
}
THRESHOLDS: dict[str, Callable[[], Any]] = {
    "by role": lambda: {"query": 0.02, "*.bias": 0.01, "*": 0.05},
    "ema": lambda: Ema(1.02, warmup=0),
    "capped ema": lambda: CappedEma(total_steps=30),
    "percentile": lambda: Percentile(20, window=8),
    "z-score": lambda: ZScore(1.0, alpha=0.9, warmup=5),
    "weights": lambda: WeightRelative(0.01),
    "rows": lambda: WeightRelative(0.01, per="row"),
    "linear": lambda: Linear(1.0, 0.01, steps=20),
    "cosine": lambda: Cosine(1.0, 0.01, steps=20),
}


def trained(model: nn.Module, optimizer: InBackward, steps: int) -> dict[str, Tensor]:
    for batch in _runs.batches(model, steps):
        _runs.backward(model, batch)
        assert all(parameter.grad is None for parameter in model.parameters())
        optimizer.step()  # as a loop that knows nothing of it does
        optimizer.zero_grad()
    return _runs.weights(model)


def ours(
    make: Callable[[], nn.Module], make_optimizer: Any, max_norm: Any, steps: int, by: Any = "tensor"
) -> dict[str, Tensor]:
    model = make()
    return trained(model, step_in_backward(components(model, by), make_optimizer, max_norm), steps)


# --- the same weights


@pytest.mark.parametrize("steps", [10, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("by", ["tensor", pytest.param("layer", marks=pytest.mark.slow), "global"])
@pytest.mark.parametrize("model", _runs.MODELS)
def test_on_every_architecture_and_partition(model: str, by: Any, steps: int) -> None:
    make = _runs.MODELS[model]
    theirs = _runs.clip_then_step(make, _runs.adamw, 0.05, steps, by)
    mine = ours(make, _runs.adamw, 0.05, steps, by)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)  # it is the same arithmetic


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_with_any_optimizer(name: str) -> None:
    theirs = _runs.clip_then_step(_runs.bert, OPTIMIZERS[name], 0.05, 20)
    mine = ours(_runs.bert, OPTIMIZERS[name], 0.05, 20)
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("steps", few([10, 20, 200], {10}))
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_with_every_threshold_of_components_own(threshold: str, steps: int) -> None:
    make = THRESHOLDS[threshold]
    theirs = _runs.clip_then_step(_runs.bert, _runs.adamw, make(), steps)
    _runs.assert_alike(ours(_runs.bert, _runs.adamw, make(), steps), theirs, tolerance=1e-6)


def test_norms_of_the_latest_step() -> None:
    model, twin = _runs.bert(), _runs.bert()
    optimizer = step_in_backward(model, _runs.adamw, {"query": 0.01, "*": 0.05})
    assert optimizer.last is None
    for one in (model, twin):
        _runs.backward(one, next(_runs.batches(one, 1)))
    wanted = clip_grad_norm_(twin, {"query": 0.01, "*": 0.05})
    assert optimizer.last is not None
    assert optimizer.last.names == wanted.names
    for name in ("norms", "thresholds", "coefficients", "total_norm"):
        torch.testing.assert_close(getattr(optimizer.last, name), getattr(wanted, name), rtol=1e-6, atol=0)


# --- how gradients come


def test_gradients_are_gone_before_those_of_the_next_layer_come() -> None:
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(6)])
    held: list[int] = []
    for layer in model:
        layer.weight.register_hook(lambda _: held.append(sum(p.grad is not None for p in model.parameters())))  # type: ignore[attr-defined]
    step_in_backward(model, _runs.sgd, 0.05)
    model(torch.ones(2, 8)).sum().backward()
    assert len(held) == 6
    assert max(held) <= 1  # the bias of the same layer


@pytest.mark.parametrize("steps", [3])
def test_micro_steps_are_accumulated(steps: int) -> None:
    model, twin = _runs.bert(), _runs.bert()
    optimizer = step_in_backward(model, _runs.adamw, 0.05)
    theirs = _runs.adamw(list(twin.parameters()))
    micro = list(_runs.batches(model, 3 * steps))
    for step in range(steps):
        for index, batch in enumerate(micro[3 * step : 3 * step + 3]):
            _runs.backward(twin, batch, 1 / 3)
            if index < 2:
                with optimizer.accumulate():
                    _runs.backward(model, batch, 1 / 3)
                assert all(p.grad is not None for p in model.parameters())
            else:
                _runs.backward(model, batch, 1 / 3)
        clip_grad_norm_(twin, 0.05)
        theirs.step()
        theirs.zero_grad()
        assert all(p.grad is None for p in model.parameters())
    mine, wanted = _runs.weights(model), _runs.weights(twin)
    assert all(torch.equal(mine[name], wanted[name]) for name in wanted)


def test_step_does_what_accumulated_micro_steps_left() -> None:
    model, twin = _runs.bert(), _runs.bert()
    optimizer = step_in_backward(model, _runs.adamw, 0.05)
    batch = next(_runs.batches(model, 1))
    with optimizer.accumulate():
        _runs.backward(model, batch)
    optimizer.step()
    _runs.backward(twin, batch)
    clip_grad_norm_(twin, 0.05)
    _runs.adamw(list(twin.parameters())).step()
    mine, wanted = _runs.weights(model), _runs.weights(twin)
    assert all(torch.equal(mine[name], wanted[name]) for name in wanted)


def test_what_the_last_micro_step_does_not_use_is_stepped_at_its_end() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 1), "b": nn.Linear(2, 1)})
    optimizer = step_in_backward(model, _runs.sgd, 1.0)
    before = _runs.weights(model)
    with optimizer.accumulate():
        model["a"](torch.ones(1, 2)).sum().backward()
    model["b"](torch.ones(1, 2)).sum().backward()
    assert all(not torch.equal(value, before[name]) for name, value in _runs.weights(model).items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_is_not_used_is_not_stepped_and_nothing_is_kept() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "idle": nn.Linear(2, 1)})
    optimizer = step_in_backward(components(model, "layer"), _runs.adamw, 1.0)
    for _ in range(3):
        before = _runs.weights(model)
        model["used"](torch.ones(1, 2)).sum().backward()
        after = _runs.weights(model)
        assert [torch.equal(after[name], before[name]) for name in before] == [False, False, True, True]
        assert all(parameter.grad is None for parameter in model.parameters())
    assert len(optimizer.state) == 2


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 6)
        self.middle = nn.Linear(6, 6)
        self.head = nn.Linear(6, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.middle(self.embedding(ids)).tanh())


def test_a_tied_parameter_is_stepped_after_its_last_use() -> None:
    models = []
    for in_backward in (True, False):
        torch.manual_seed(0)
        model = Tied()
        parts = components(model)
        optimizer: Any = (
            step_in_backward(parts, _runs.adamw, 0.05) if in_backward else _runs.adamw(list(model.parameters()))
        )
        for step in range(5):
            nn.functional.cross_entropy(model(torch.arange(10)), torch.arange(10).roll(step)).backward()
            if not in_backward:
                clip_grad_norm_(parts, 0.05)
            optimizer.step()
            optimizer.zero_grad()
        models.append(_runs.weights(model))
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[1])


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool, shared: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(1 if shared else 3)])
        self.order = [0, 0, 0] if shared else [0, 1, 2]
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for index in self.order:
            block = self.blocks[index]
            x = checkpoint(lambda x, b=block: b(x).tanh(), x, use_reentrant=self.reentrant)
        return x.sum()


@pytest.mark.parametrize("shared", [False, True])
def test_checkpointed_activations_are_recomputed_with_the_old_weights(shared: bool) -> None:
    mine, twin = (Checkpointed(reentrant=False, shared=shared) for _ in range(2))
    step_in_backward(mine, _runs.sgd, 0.05)
    theirs = _runs.sgd(twin.parameters())
    for _ in range(4):
        mine(torch.ones(2, 4)).backward()
        twin(torch.ones(2, 4)).backward()
        clip_grad_norm_(twin, 0.05)
        theirs.step()
        theirs.zero_grad()
    one, other = _runs.weights(mine), _runs.weights(twin)
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_reentrant_checkpoints_are_refused() -> None:
    model = Checkpointed(reentrant=True)
    step_in_backward(model, _runs.sgd, 0.05)
    with pytest.raises(OptimizerError, match="use_reentrant=False"):
        model(torch.ones(2, 4)).backward()


class Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        raise KeyError("the middle of backward")


def test_a_backward_that_fails_leaves_what_did_not_step_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    optimizer = step_in_backward(model, _runs.adamw, 0.05)
    before = _runs.weights(model)
    with pytest.raises(KeyError, match="middle"):
        model[1](Fails.apply(model[0](torch.ones(1, 3)))).sum().backward()
    after = _runs.weights(model)
    assert [torch.equal(after[name], before[name]) for name in before] == [True, True, False, False]
    assert set(optimizer.state) == set(model[1].parameters())
    for again in (lambda: model(torch.ones(1, 3)).sum().backward(), optimizer.step):
        with pytest.raises(GradientError, match=r"did not come to its end: 2 of 4 .* zero_grad\(\)"):
            again()
    optimizer.zero_grad()
    model(torch.ones(1, 3)).sum().backward()
    assert set(optimizer.state) == set(model.parameters())


def test_an_error_of_clipping_leaves_its_component_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    step_in_backward(model, _runs.sgd, 0.05, nonfinite="error")
    before = _runs.weights(model)
    with pytest.raises(GradientError, match="not finite"):
        model(torch.full((1, 3), NAN)).sum().backward()
    after = _runs.weights(model)
    assert torch.equal(after["1.weight"], before["1.weight"])
    assert torch.equal(after["0.weight"], before["0.weight"])


# --- an ordinary optimizer otherwise


def test_schedules_move_its_learning_rate() -> None:
    model, twin = _runs.bert(), _runs.bert()
    mine, theirs = step_in_backward(model, _runs.adamw, 0.05), _runs.adamw(list(twin.parameters()))
    schedules = [torch.optim.lr_scheduler.LinearLR(one, 1.0, 0.0, 10) for one in (mine, theirs)]
    for batch in _runs.batches(model, 10):
        _runs.backward(model, batch)
        _runs.backward(twin, batch)
        clip_grad_norm_(twin, 0.05)
        for optimizer in (mine, theirs):
            optimizer.step()
            optimizer.zero_grad()
        for schedule in schedules:
            schedule.step()
    assert mine.param_groups[0]["lr"] == 0.0
    one, other = _runs.weights(model), _runs.weights(twin)
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("max_norm", [lambda: 0.05, lambda: Percentile(30, window=8)])
def test_a_saved_state_goes_on_as_if_nothing_had_been(max_norm: Callable[[], Any]) -> None:
    whole = _runs.bert()
    optimizer = step_in_backward(whole, _runs.adamw, max_norm())
    trained(whole, optimizer, 4)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    optimizer.remove()
    resumed = copy.deepcopy(whole)
    optimizer = step_in_backward(whole, _runs.adamw, max_norm())
    other = step_in_backward(resumed, lambda ps: _runs.adamw(ps, lr=1.0), max_norm())
    state = torch.load(buffer, weights_only=True)
    optimizer.load_state_dict(copy.deepcopy(state))
    other.load_state_dict(copy.deepcopy(state))
    first, second = trained(whole, optimizer, 4), trained(resumed, other, 4)
    assert all(torch.equal(first[name], second[name]) for name in first)
    once = ours(_runs.bert, _runs.adamw, max_norm(), 4)
    assert set(once) == set(first)


def test_its_state_is_that_of_the_optimizer_behind() -> None:
    model = _runs.bert()
    optimizer = step_in_backward(model, _runs.adamw, 0.05)
    trained(model, optimizer, 2)
    plain = _runs.adamw(list(model.parameters()))
    plain.load_state_dict(optimizer.state_dict())
    assert {int(state["step"]) for state in plain.state.values()} == {2}
    optimizer.load_state_dict(plain.state_dict())


def test_what_another_threshold_learnt_is_refused() -> None:
    model = _runs.bert()
    learnt = step_in_backward(model, _runs.adamw, Percentile(30))
    trained(model, learnt, 1)
    learnt.remove()
    with pytest.raises(ThresholdError, match="saved with the threshold Percentile"):
        step_in_backward(model, _runs.adamw, Ema(warmup=0)).load_state_dict(learnt.state_dict())


def test_removed_hooks_leave_an_ordinary_backward() -> None:
    model = _runs.bert()
    step_in_backward(model, _runs.adamw, 0.05).remove()
    before = _runs.weights(model)
    _runs.backward(model, next(_runs.batches(model, 1)))
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in _runs.weights(model).items())


def test_groups_keep_their_settings() -> None:
    def grouped(parameters: list[Tensor]) -> torch.optim.Optimizer:
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "lr": 1e-2},
            {"params": [p for p in parameters if p.dim() == 1], "lr": 1e-3, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, eps=1e-5, foreach=False)

    theirs = _runs.clip_then_step(_runs.bert, grouped, 0.05, 10, "layer")
    mine = ours(_runs.bert, grouped, 0.05, 10, "layer")
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


# --- bad input


def frozen() -> nn.Module:
    return nn.Linear(2, 2).requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda m: step_in_backward(m, _runs.adamw, Ema()), ThresholdError, "looks at components together"),
        (lambda m: step_in_backward(m, _runs.adamw, Budget(1.0)), ThresholdError, "looks at components together"),
        (
            lambda m: step_in_backward(m, _runs.adamw, Grouped(Percentile(10), by="global")),
            ThresholdError,
            "looks at components together",
        ),
        (lambda m: step_in_backward(m, torch.optim.LBFGS, 1.0), OptimizerError, "LBFGS.step needs a closure"),
        (
            lambda m: step_in_backward(m, lambda ps: ClippedAdamW(m, max_norm=1.0), 1.0),
            OptimizerError,
            "clips by compon",
        ),
        (lambda m: step_in_backward(m, lambda ps: None, 1.0), OptimizerError, "an optimizer of torch is needed"),
        (lambda m: step_in_backward(frozen(), _runs.adamw, 1.0), ComponentError, "no trainable parameter"),
        (
            lambda m: step_in_backward(m, lambda ps: _runs.adamw([*ps, nn.Parameter(torch.ones(3))]), 1.0),
            ComponentError,
            "belong to no component",
        ),
        (lambda m: step_in_backward(m, _runs.adamw, -1.0), ThresholdError, "no positive number"),
        (lambda m: step_in_backward(m, _runs.adamw, 1.0, norm_type=-1), GradientError, "norm_type"),
        (lambda m: step_in_backward(m, _runs.adamw, 1.0).step(lambda: 0.0), OptimizerError, "steps happen in backward"),
        (
            lambda m: step_in_backward(m, _runs.adamw, 1.0).add_param_group({"params": [nn.Parameter(torch.ones(1))]}),
            OptimizerError,
            "cannot be added",
        ),
        (
            lambda m: step_in_backward(nn.ModuleList([m, nn.Linear(2, 2, device="meta")]), _runs.adamw, 1.0),
            OptimizerError,
            "lie on cpu, meta",
        ),
    ],
)
def test_bad_input_is_refused(make: Callable[[nn.Module], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(nn.Linear(2, 2))


def test_a_gradient_scaler_is_refused_with_the_way_out() -> None:
    model = _models.bert()
    optimizer = step_in_backward(model, _runs.adamw, 0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(model(**next(_runs.batches(model, 1))).loss).backward()
    with pytest.raises(OptimizerError, match="bfloat16"):
        scaler.step(optimizer)


def test_bfloat16_needs_no_scaler() -> None:
    model = _models.bert()
    optimizer = step_in_backward(model, _runs.adamw, 0.05)
    before = _runs.weights(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**next(_runs.batches(model, 1))).loss
    loss.backward()
    optimizer.step()
    assert any(not torch.equal(value, before[name]) for name, value in _runs.weights(model).items())


# --- what an attack found


@pytest.mark.parametrize("by", ["module", "layer", "global"])
def test_a_component_of_several_tensors_waits_for_all_in_the_last_micro_step(by: Any) -> None:
    model, twin = _runs.bert(), _runs.bert()
    optimizer = step_in_backward(components(model, by), _runs.adamw, 0.05)
    theirs = _runs.adamw(list(twin.parameters()))
    micro = list(_runs.batches(model, 6))
    for first, last in zip(micro[::2], micro[1::2], strict=True):
        with optimizer.accumulate():
            _runs.backward(model, first)
        _runs.backward(model, last)
        for batch in (first, last):
            _runs.backward(twin, batch)
        clip_grad_norm_(components(twin, by), 0.05)
        theirs.step()
        theirs.zero_grad()
    mine, wanted = _runs.weights(model), _runs.weights(twin)
    assert all(torch.equal(mine[name], wanted[name]) for name in wanted)


class Sometimes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.always, self.rarely = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))

    def forward(self, use: bool) -> Tensor:
        return 3 * self.always.sum() + (3 * self.rarely.sum() if use else 0.0)


@pytest.mark.parametrize(
    "max_norm", [lambda: Linear(1.0, 0.1, steps=4), lambda: Cosine(1.0, 0.1, steps=4), lambda: CappedEma(total_steps=6)]
)
def test_schedules_of_thresholds_go_on_where_a_component_is_not_used(max_norm: Callable[[], Any]) -> None:
    model, twin, threshold = Sometimes(), Sometimes(), max_norm()
    step_in_backward(model, _runs.sgd, max_norm())
    theirs, parts = _runs.sgd(twin.parameters()), components(twin)
    for step in range(6):
        model(step % 2 == 0).backward()
        twin(step % 2 == 0).backward()
        clip_grad_norm_(parts, threshold)
        theirs.step()
        theirs.zero_grad()
    mine, wanted = _runs.weights(model), _runs.weights(twin)
    assert all(torch.equal(mine[name], wanted[name]) for name in wanted)


def test_a_gradient_scaler_is_refused_where_gradients_were_unscaled_too() -> None:
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer, plain = step_in_backward(model, _runs.sgd, 0.05), _runs.sgd(other.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale((model(torch.ones(1, 2)) + other(torch.ones(1, 2))).sum()).backward()
    for one in (optimizer, plain):
        scaler.unscale_(one)
    with pytest.raises(OptimizerError, match="bfloat16"):
        scaler.step(optimizer)


def test_what_was_learnt_after_backward_is_not_taken_for_the_parts_own() -> None:
    model = _runs.bert()
    whole = ClippedAdamW(model, max_norm=Percentile(30))
    _runs.backward(model, next(_runs.batches(model, 1)))
    whole.step()
    model.zero_grad()
    parts = step_in_backward(model, _runs.adamw, Percentile(30))
    trained(model, parts, 1)
    with pytest.raises(ThresholdError, match="clips after backward"):
        parts.load_state_dict(whole.state_dict())
    with pytest.raises(ThresholdError, match="steps in backward"):
        whole.load_state_dict(parts.state_dict())


def test_a_state_of_a_plain_optimizer_lets_thresholds_begin_anew() -> None:
    model = _runs.bert()
    optimizer = step_in_backward(model, _runs.adamw, Percentile(30))
    trained(model, optimizer, 2)
    optimizer.load_state_dict(_runs.adamw(list(model.parameters())).state_dict())
    units = optimizer.state_dict()["threshold"]["units"]
    assert all(not unit["names"] for unit in units.values())


def test_mixed_dtypes_have_norms_in_the_widest() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    optimizer = step_in_backward(model, _runs.sgd, 0.05)
    model[1](model[0](torch.ones(1, 2)).double()).sum().backward()
    assert optimizer.last is not None
    assert optimizer.last.norms.dtype == torch.float64


def test_two_of_them_cannot_step_one_model() -> None:
    model = nn.Linear(2, 2)
    first = step_in_backward(model, _runs.sgd, 0.05)
    with pytest.raises(OptimizerError, match="stepped in backward already"):
        step_in_backward(model, _runs.sgd, 0.05)
    first.remove()
    step_in_backward(model, _runs.sgd, 0.05)


def test_what_was_frozen_meanwhile_gets_no_hook() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = step_in_backward(model, _runs.sgd, 0.05)
    optimizer.remove()
    model[0].requires_grad_(False)
    optimizer.attach()
    before = _runs.weights(model)
    model(torch.ones(1, 2)).sum().backward()
    assert [torch.equal(value, before[name]) for name, value in _runs.weights(model).items()] == [
        True,
        True,
        False,
        False,
    ]


def test_a_copy_is_refused() -> None:
    optimizer = step_in_backward(nn.Linear(2, 2), _runs.sgd, 0.05)
    with pytest.raises(OptimizerError, match="cannot be copied"):
        copy.deepcopy(optimizer)
