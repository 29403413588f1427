"""What ranks do in the tests of sharded clipping, and what one process does instead."""

from __future__ import annotations

import functools
import math
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from tests.clipping import _layouts
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.debug import CommDebugMode

from evenkeel import Components, clip_grad_norm_, components
from evenkeel.clipping import grad_norms
from evenkeel.clipping.thresholds import Budget, WeightRelative
from evenkeel.errors import EvenkeelError
from evenkeel.partition import regroup
from evenkeel.partition._shard import local_blocks

EPSILON = 1e-6
Gradients = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One call of ``clip_grad_norm_``; ``poisoned`` names the parameter whose first gradient entry is NaN."""

    max_norm: Any
    by: str = "tensor"
    norm_type: float = 2.0
    nonfinite: Any = "propagate"
    poisoned: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one call saw and did; gradients are those of the whole model, put together from all ranks."""

    names: tuple[str, ...]
    norms: Tensor
    coefficients: Tensor
    total_norm: Tensor
    gradients: Gradients = field(repr=False)
    traffic: dict[str, int] = field(default_factory=dict)


# --- in one process


@functools.cache
def trained(name: str) -> nn.Module:
    model = _layouts.build(name)
    _layouts.backward(model)
    return model


def norm(entries: list[Tensor], norm_type: float) -> float:
    flat = torch.cat([entry.flatten() for entry in entries])
    return float(torch.linalg.vector_norm(flat, norm_type))


def norms_of(name: str, by: str, norm_type: float) -> list[float]:
    return [norm(list(part.gradients()), norm_type) for part in components(trained(name), by)]  # type: ignore[arg-type]


@functools.cache
def in_one_process(name: str, clip: Clip) -> Outcome:
    """The paper's formula on the whole model, component by component, with a number for a threshold."""
    model = trained(name)
    gradients = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    if clip.poisoned is not None:
        gradients[clip.poisoned].view(-1)[0] = math.nan
    names, norms, coefficients = [], [], []
    for part in components(model, clip.by):  # type: ignore[arg-type]
        views = [view for piece in part.pieces for view in piece.of(gradients[piece.name])]
        names.append(part.name)
        norms.append(norm(views, clip.norm_type))
        finite = math.isfinite(norms[-1])
        coefficients.append(min(1.0, clip.max_norm / (norms[-1] + EPSILON)) if finite else math.nan)
        if not finite and clip.nonfinite == "zero":
            coefficients[-1] = 0.0
        for view in views:
            view.copy_(view * coefficients[-1] if coefficients[-1] else torch.zeros_like(view))
    total = norm([torch.tensor(norms, dtype=torch.float64)], clip.norm_type)
    return Outcome(
        names=tuple(names),
        norms=torch.tensor(norms, dtype=torch.float64),
        coefficients=torch.tensor(coefficients, dtype=torch.float64),
        total_norm=torch.tensor(total, dtype=torch.float64),
        gradients=gradients,
    )


# --- on a rank


def spread(layout: str, name: str, clips: list[Clip]) -> list[Outcome]:
    """Train a model that a wrapper of torch spreads over the ranks, and clip it in several ways."""
    model, share, shares = _layouts.LAYOUTS[layout](_layouts.build(name))
    _layouts.backward(model, share, shares)
    return all_clipped(model, clips)


def placed(rule: str, name: str, clips: list[Clip]) -> list[Outcome]:
    """Train a model whole, put it where a rule says, and clip it."""
    model = _layouts.build(name)
    _layouts.backward(model)
    return all_clipped(_layouts.place(model, _layouts.RULES[rule]()), clips)


def given(name: str, clips: list[Clip]) -> list[Outcome]:
    """Clip what FSDP2 makes of fused tensors that tensor parallelism cuts along the same dimension."""
    whole = _layouts.build(name)
    _layouts.backward(whole)
    model = _layouts.fused_with_tensor_parallel(_layouts.build(name))
    for (_, parameter), (_, plain) in zip(model.named_parameters(), whole.named_parameters(), strict=True):
        assert isinstance(parameter, DTensor)
        parameter.grad = _layouts.distribute(plain.grad, parameter.device_mesh, list(parameter.placements))
    return all_clipped(model, clips)


def staged(name: str, clips: list[Clip], together: bool) -> list[Outcome]:
    """Clip a model that two pipeline stages have half each; with four ranks, two share a stage."""
    model = _layouts.build(name)
    _layouts.backward(model)
    where = _layouts.mesh(pp=2, dp=dist.get_world_size() // 2)
    model = _layouts.stage(model, where.get_local_rank("pp"))
    if where.size(1) > 1:
        shard = [Shard(0)]
        _layouts.place(model, lambda name, parameter: (where["dp"], shard, shard) if parameter.dim() > 1 else None)
    return all_clipped(model, clips, where.get_group("pp") if together else None)


def all_clipped(model: nn.Module, clips: list[Clip], group: Any = None) -> list[Outcome]:
    """Clip the gradients that a model has in several ways, each time the same ones."""
    parts = components(model)
    before = {
        parameter: local(parameter.grad).clone() for parameter in model.parameters() if parameter.grad is not None
    }
    outcomes = []
    for clip in clips:
        for parameter, entries in before.items():
            assert parameter.grad is not None
            local(parameter.grad).copy_(entries)
        if clip.poisoned is not None:
            poison(parts, clip.poisoned)
        outcomes.append(clipped(model, regroup(parts, clip.by), clip, group))  # type: ignore[arg-type]
    return outcomes


def clipped(model: nn.Module, parts: Components, clip: Clip, group: Any = None) -> Outcome:
    kind = {"norm_type": clip.norm_type, "nonfinite": clip.nonfinite, "group": group}
    if group is not None:
        grad_norms(parts, group=group)  # the stages tell each other once what they have; it is not counted
    with CommDebugMode() as traffic, warnings.catch_warnings():
        warnings.simplefilter("error")
        result = clip_grad_norm_(parts, clip.max_norm, **kind)
    return Outcome(
        names=result.names,
        norms=result.norms,
        coefficients=result.coefficients,
        total_norm=result.total_norm,
        gradients=whole_gradients(model),
        traffic={str(kind): number for kind, number in traffic.get_comm_counts().items()},
    )


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def poison(parts: Components, name: str) -> None:
    """Make the first entry of a gradient NaN, on the ranks that hold it."""
    piece = next(piece for part in parts for piece in part.pieces if piece.name == name)
    grad = piece.tensor().grad
    if grad is None or (piece.flat is not None and piece.flat.start > 0):
        return
    if isinstance(grad, DTensor):
        coordinate = grad.device_mesh.get_coordinate() or []
        if any(
            rank for rank, placement in zip(coordinate, grad.placements, strict=True) if not placement.is_replicate()
        ):
            return
    local(grad).view(-1)[0] = math.nan


def whole_gradients(model: nn.Module) -> Gradients:
    if isinstance(model, FullyShardedDataParallel):
        with (
            warnings.catch_warnings(),
            FullyShardedDataParallel.summon_full_params(model, with_grads=True, writeback=False),
        ):
            warnings.simplefilter("ignore")
            return _gradients(model)
    return _gradients(model)


def _gradients(model: nn.Module) -> Gradients:
    found = {}
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        if grad is not None:
            plain = name.replace("_fsdp_wrapped_module.", "").removeprefix("module.")
            found[plain] = (grad.full_tensor() if isinstance(grad, DTensor) else grad).detach().clone()
    return found


def _traffic(call: Callable[[], Any]) -> dict[str, int]:
    with CommDebugMode() as traffic:
        call()
    return {str(kind): number for kind, number in traffic.get_comm_counts().items()}


def with_missing(layout: str, name: str) -> tuple[list[float], list[float]]:
    """Return the norms where the last rank's gradients are zeros, and where that rank has none at all."""
    model, share, shares = _layouts.LAYOUTS[layout](_layouts.build(name))
    _layouts.backward(model, share, shares)
    last = dist.get_rank() == dist.get_world_size() - 1
    parts = components(model)
    if last:
        for parameter in model.parameters():
            if parameter.grad is not None:
                local(parameter.grad).zero_()
    zeros = clip_grad_norm_(parts, math.inf).norms.tolist()
    if last:
        model.zero_grad(set_to_none=True)
    return zeros, clip_grad_norm_(parts, math.inf).norms.tolist()


def by_weights(layout: str, name: str, ratio: float) -> tuple[list[float], dict[str, int]]:
    """Return the thresholds in proportion to the weights, and what it sent."""
    model, share, shares = _layouts.LAYOUTS[layout](_layouts.build(name))
    _layouts.backward(model, share, shares)
    parts = components(model)
    found: list[float] = []
    traffic = _traffic(lambda: found.extend(clip_grad_norm_(parts, WeightRelative(ratio)).thresholds.tolist()))
    return found, traffic


def staged_budget(name: str) -> dict[str, float]:
    """Return the share of one budget that every component of this rank's stage has."""
    model = _layouts.build(name)
    _layouts.backward(model)
    model = _layouts.stage(model, dist.get_rank())
    result = clip_grad_norm_(components(model), Budget(1.0), group=dist.group.WORLD)
    return dict(zip(result.names, result.thresholds.tolist(), strict=True))


def other_stage() -> None:
    """Clip stages that call different parameters by one name."""
    model = nn.Linear(2 + dist.get_rank(), 1)
    model(torch.ones(1, 2 + dist.get_rank())).sum().backward()
    clip_grad_norm_(components(model), 1.0, group=dist.group.WORLD)


def found_again(layout: str, name: str, pickled: bytes) -> tuple[Components, Components, list[int]]:
    """Return components found of a wrapped model, bound to it, and the numbers of entries of each on this rank."""
    model, _, _ = _layouts.LAYOUTS[layout](_layouts.build(name))
    plain: Components = pickle.loads(pickled)  # noqa: S301
    bound = plain.bind(model)
    for mine, own in zip(bound, components(model), strict=True):
        assert all(a is b for a, b in zip(mine.parameters, own.parameters, strict=True))
        assert [piece.flat for piece in mine.pieces] == [piece.flat for piece in own.pieces]
    here = [sum(view.numel() for piece in part.pieces for view in piece.of(piece.tensor())) for part in bound]
    return components(model), bound, here


def found_before(layout: str, name: str) -> str:
    """Return the error of clipping by components that were found before the model was wrapped."""
    model = _layouts.build(name)
    parts = components(model)
    model, share, shares = _layouts.LAYOUTS[layout](model)
    _layouts.backward(model, share, shares)
    return _error(lambda: clip_grad_norm_(parts, 1.0))


def hidden(name: str) -> tuple[str, str]:
    """Return the errors of finding and of binding components where FSDP1 hides the parameters."""
    parts = components(_layouts.build(name))
    model, _, _ = _layouts.fsdp1(_layouts.build(name), own=False)
    return _error(lambda: components(model)), _error(lambda: parts.bind(model))


def _error(call: Callable[[], Any]) -> str:
    try:
        call()
    except EvenkeelError as error:
        return f"{type(error).__name__}: {error}"
    return ""


Box = tuple[tuple[int, ...], Any]


def blocks_of(shape: tuple[int, ...], placements: list[tuple[str, int]]) -> list[Box]:
    """Return where each block of this rank begins, and its entries, which are numbered through the whole tensor."""
    where = _layouts.mesh(a=2, b=2)
    whole = torch.arange(math.prod(shape)).view(shape)
    tensor = _layouts.distribute(whole, where, [_layouts.placement(kind, dim) for kind, dim in placements])
    storage = tensor.to_local().untyped_storage().data_ptr()
    blocks = list(local_blocks(tensor))
    assert all(view.untyped_storage().data_ptr() == storage for view, _ in blocks)
    return [(begin, view.tolist()) for view, begin in blocks]


def fail_on(rank: int) -> int:
    """Fail on one rank, while the others wait for it."""
    if dist.get_rank() == rank:
        raise ValueError("as asked")
    dist.barrier()
    return dist.get_rank()
