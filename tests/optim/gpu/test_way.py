"""Whole optimizer steps by the GPU's kernels, which Triton interprets on the CPU in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.clipping._bag import INF, NAN, Bag, bits, drawn
from tests.clipping.gpu import test_segments
from torch import Tensor

from evenkeel import clip_grad_norm_, components
from evenkeel.clipping.thresholds import Percentile
from evenkeel.optim import ClippedAdamW, _clipped_adamw
from evenkeel.optim._jobs import Jobs
from evenkeel.optim.gpu import OnGpu

pytestmark = [pytest.mark.slow, pytest.mark.matrix]  # Triton's interpreter is slow, and a GPU is what these are for

interpreted = test_segments.interpreted  # a fixture

SHAPES = [(7, 5), (300,), (), (64, 33)]


def far_apart(
    max_norm: float | None,
    options: dict[str, Any],
    nonfinite: Any,
    poison: float | None,
    dtype: torch.dtype,
    steps: int = 4,
) -> tuple[float, bool, bool]:
    """Return how far parameters are from torch's, whether torch was asked, and whether gradients kept their bits."""
    asked: list[object] = []
    real = _clipped_adamw.update_by_torch
    models = [Bag(*[drawn(*shape, seed=9, dtype=dtype) for shape in SHAPES]) for _ in range(2)]
    ours = ClippedAdamW(
        models[0], lr=0.01, max_norm=Percentile(50) if max_norm is None else max_norm, nonfinite=nonfinite, **options
    )
    theirs = torch.optim.AdamW(models[1].parameters(), lr=0.01, **{k: v for k, v in options.items() if k != "fused"})
    limit: Any = Percentile(50) if max_norm is None else max_norm
    kept = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_clipped_adamw, "update_by_torch", lambda *args, **kw: (asked.append(1), real(*args, **kw)))
        for step in range(steps):
            for model in models:
                for index, parameter in enumerate(model.parameters()):
                    missing = index == 1 and step == 1  # so that not all are at the same step
                    parameter.grad = None if missing else drawn(*parameter.shape, seed=10 * step + index, dtype=dtype)
                if poison is not None:
                    next(model.parameters()).grad.view(-1)[0] = poison  # type: ignore[union-attr]
            before = [bits(grad) for grad in models[0].grads]
            ours.step()
            kept = kept and [bits(grad) for grad in models[0].grads] == before
            clip_grad_norm_(models[1], limit, nonfinite=nonfinite)
            theirs.step()
    pairs = zip(*(model.parameters() for model in models), strict=True)
    far = max((one - other).abs().nan_to_num().max().item() for one, other in pairs)
    same = all(
        torch.equal(a.isnan(), b.isnan()) for a, b in zip(*(model.parameters() for model in models), strict=True)
    )
    return far if same else INF, bool(asked), kept


@pytest.mark.parametrize("max_norm", [0.5, INF, None])
@pytest.mark.parametrize("options", [{}, {"maximize": True}, {"fused": True}, {"weight_decay": 0.0}])
def test_it_is_clipping_and_then_adamw(
    interpreted: Callable[..., Any], max_norm: float | None, options: dict[str, Any]
) -> None:
    far, asked, kept = interpreted(far_apart, max_norm, options, "propagate", None, torch.float32)
    assert far < 1e-6
    assert not asked
    assert kept


@pytest.mark.parametrize("nonfinite", ["propagate", "zero"])
@pytest.mark.parametrize("poison", [NAN, INF])
def test_what_is_not_finite(interpreted: Callable[..., Any], nonfinite: str, poison: float) -> None:
    far, asked, _ = interpreted(far_apart, 0.5, {}, nonfinite, poison, torch.float32)
    assert far < 1e-6
    assert not asked


def test_float64(interpreted: Callable[..., Any]) -> None:
    far, asked, _ = interpreted(far_apart, 0.5, {}, "propagate", None, torch.float64)
    assert far < 1e-12
    assert not asked


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": False}, {"amsgrad": True}])
def test_torch_is_asked_where_it_is_wanted(interpreted: Callable[..., Any], options: dict[str, Any]) -> None:
    far, asked, _ = interpreted(far_apart, 0.5, options, "propagate", None, torch.float32, 2)
    assert far < 1e-6
    assert asked


def other_layout() -> tuple[bool, bool]:
    model = Bag(drawn(6, 4))
    (parameter,) = model.parameters()
    parameter.grad = drawn(4, 6).t()
    before = parameter.detach().clone()
    ClippedAdamW(model, max_norm=0.5).step()
    return torch.equal(before, parameter), bool(parameter.isfinite().all())


def test_a_gradient_of_other_strides_is_left_to_torch(interpreted: Callable[..., Any]) -> None:
    assert interpreted(other_layout) == (False, True)


def limited(nonfinite: Any, poison: float | None, dtype: torch.dtype) -> tuple[float, bool, list[float]]:
    """Limit steps here and, in float64, by torch; return how far apart they are, and the coefficients."""
    asked: list[object] = []
    real = _clipped_adamw.update_by_torch
    models = [Bag(*[drawn(*shape, seed=9, dtype=one) for shape in SHAPES]) for one in (dtype, torch.float64)]
    optimizers = []
    for model, options in zip(models, ({}, {"foreach": True}), strict=True):
        for seed, parameter in enumerate(model.parameters()):
            parameter.data.copy_(drawn(*parameter.shape, seed=seed, dtype=dtype))
        groups = [{"params": list(model.parameters())[:2], "lr": 0.3}, {"params": list(model.parameters())[2:]}]
        common: dict[str, Any] = {"max_norm": 0.5, "max_update": {"p[01]": 0.01, "*": 3.0}, "nonfinite": nonfinite}
        optimizers.append(ClippedAdamW(groups, lr=0.1, weight_decay=0.1, parts=components(model), **common, **options))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_clipped_adamw, "update_by_torch", lambda *args, **kw: (asked.append(1), real(*args, **kw)))
        for step in range(3):
            for model, optimizer in zip(models, optimizers, strict=True):
                for index, parameter in enumerate(model.parameters()):
                    grad = drawn(*parameter.shape, seed=10 * step + index, dtype=dtype)
                    parameter.grad = None if index == 1 and step == 1 else grad.to(parameter.dtype)
                if poison is not None:
                    next(model.parameters()).grad.view(-1)[0] = poison  # type: ignore[union-attr]
                asked.clear()
                optimizer.step()
                if model is models[0] and asked:
                    return INF, True, []
    pairs = list(zip(*(model.parameters() for model in models), strict=True))
    far = max((one.double() - other).abs().nan_to_num().max().item() for one, other in pairs)
    same = all(torch.equal(one.isnan(), other.isnan()) for one, other in pairs)
    assert optimizers[0].last_update is not None
    return far if same else INF, False, optimizers[0].last_update.coefficients.tolist()


@pytest.mark.parametrize(("nonfinite", "poison"), [("propagate", None), ("propagate", NAN), ("zero", NAN)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_are_limited(
    interpreted: Callable[..., Any], nonfinite: str, poison: float | None, dtype: torch.dtype
) -> None:
    far, asked, coefficients = interpreted(limited, nonfinite, poison, dtype)
    assert not asked
    assert far < (2e-5 if dtype == torch.float32 else 1e-12)
    assert coefficients[1] < 0.9
    assert coefficients[2:] == [1.0, 1.0]


def jobs(*tensors: Tensor) -> Jobs:
    listed = [list(tensors) for _ in range(4)]
    return Jobs(parameters=listed[0], gradients=listed[1], exp_avgs=listed[2], exp_avg_sqs=listed[3])


def test_tensors_of_several_devices_are_left_to_torch() -> None:
    here, there = torch.ones(2), torch.ones(2, device="meta")
    assert OnGpu().takes(jobs(here, here))
    assert not OnGpu().takes(jobs(here, there))
