"""What ranks do in the tests of optimizers, and what one process does instead."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from tests.optim import _runs
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from evenkeel import clip_grad_norm_, components
from evenkeel.clipping.thresholds import Percentile
from evenkeel.errors import OptimizerError
from evenkeel.optim import ClippedAdamW, clipped, latest_update, step_in_backward

LIMITS = {"number": lambda: 0.05, "percentile": lambda: Percentile(30, window=8)}


def alone(model: str, limit: str, by: str, steps: int) -> dict[str, Tensor]:
    """Clip-then-step in one process, on the whole batch."""
    return _runs.clip_then_step(_runs.MODELS[model], _runs.adamw, LIMITS[limit](), steps, by)


def limited(
    model: str, how: str, by: Any, max_update: Any, steps: int, wrapper: str = ""
) -> tuple[dict[str, Tensor], list[list[float]]]:
    """Train with limited steps, here or on this rank's half of every batch; return whole weights and coefficients."""
    given = wrapped(model, wrapper) if wrapper else _runs.MODELS[model]()
    parts = components(given, by)
    if how == "in backward":
        optimizer: Any = step_in_backward(
            given if wrapper == "ddp" else parts, _runs.adamw, 0.05, max_update=max_update
        )
    elif how == "clipped adamw":
        optimizer = ClippedAdamW(parts, **_runs.ADAMW, max_norm=0.05, max_update=max_update)
    else:
        optimizer = clipped(_runs.adamw(list(given.parameters())), parts, max_norm=0.05, max_update=max_update)
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if wrapper else (0, 1)
    inner = given.module if wrapper == "ddp" else given
    seen = []
    for batch in _runs.batches(inner, steps):
        given(**{key: value.chunk(ranks)[rank] for key, value in batch.items()}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found = latest_update(optimizer)
        assert found is not None
        seen.append(found[0].coefficients.tolist())
    weights = _runs.weights(inner)
    whole = {key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in weights.items()}
    return whole, seen


def wrapped(name: str, wrapper: str, **fully: Any) -> nn.Module:
    model = _runs.MODELS[name]()
    if wrapper == "ddp":
        return DistributedDataParallel(model, find_unused_parameters=name == "mixtral")
    blocks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    for block in blocks[0]:
        fully_shard(block, **fully)
    return fully_shard(model, **fully)


def trained(name: str, wrapper: str, how: str, limit: str, by: Any, steps: int) -> tuple[dict[str, Tensor], str]:
    """Train on this rank's half of every batch; return the whole weights, and what the first parameter is."""
    model = wrapped(name, wrapper)
    threshold = LIMITS[limit]()
    parts = components(model, by)
    if how == "in backward":
        given: Any = model if wrapper == "ddp" and by == "tensor" else parts
        optimizer: Any = step_in_backward(given, _runs.adamw, threshold)
    elif how == "clipped adamw":
        optimizer = ClippedAdamW(parts, **_runs.ADAMW, max_norm=threshold)
    else:
        optimizer = clipped(_runs.adamw(list(model.parameters())), parts, max_norm=threshold)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    inner = model.module if wrapper == "ddp" else model
    for batch in _runs.batches(inner, steps):
        share = {key: value.chunk(ranks)[rank] for key, value in batch.items()}
        model(**share).loss.backward()
        if how == "in backward":
            assert all(parameter.grad is None for parameter in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    kind = type(next(model.parameters())).__name__
    whole = {
        key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in _runs.weights(inner).items()
    }
    return whole, kind


def accumulated(wrapper: str) -> dict[str, Tensor]:
    """Two micro-steps on each rank, of which the first steps nothing."""
    model = wrapped("bert", wrapper)
    optimizer = step_in_backward(model, _runs.adamw, 0.05)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    inner = model.module if wrapper == "ddp" else model
    for batch in _runs.batches(inner, 3):
        share = {key: value.chunk(ranks)[rank] for key, value in batch.items()}
        micro = [{key: value.chunk(2)[index] for key, value in share.items()} for index in range(2)]
        with optimizer.accumulate():
            (model(**micro[0]).loss / 2).backward()
        (model(**micro[1]).loss / 2).backward()
    weights = _runs.weights(inner)
    return {key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in weights.items()}


def refused() -> str:
    model = wrapped("bert", "ddp")
    try:
        step_in_backward(components(model), _runs.adamw, 0.05)
    except OptimizerError as error:
        return str(error)
    return ""


def traffic(how: str) -> dict[str, int]:
    """Count all-reduces of one step of a sharded model; norms are what they are for."""
    from torch.distributed.tensor.debug import CommDebugMode

    model = wrapped("bert", "fsdp2")
    parts = components(model)
    batch = next(_runs.batches(model, 1))
    if how == "clipped adamw":
        optimizer = ClippedAdamW(parts, **_runs.ADAMW, max_norm=0.05)
        model(**batch).loss.backward()
        with CommDebugMode() as counted:
            optimizer.step()
    else:
        step_in_backward(parts, _runs.adamw, 0.05)
        with CommDebugMode() as counted:
            model(**batch).loss.backward()
    return {str(kind): number for kind, number in counted.get_comm_counts().items()} | {"components": len(parts)}


def scaled(how: str, poisoned: int) -> tuple[dict[str, Tensor], list[bool], set[str]]:
    """Train a sharded model in float16 by a loss scaler; in one step a gradient overflows on the last rank alone.

    Returns:
        The whole weights, whether the scale was kept in each step, and what gradients and computations were.
    """
    rank, ranks, seen = dist.get_rank(), dist.get_world_size(), set()
    half = MixedPrecisionPolicy(param_dtype=torch.float16, reduce_dtype=torch.float32)
    model = wrapped("bert", "fsdp2", mp_policy=half)
    parts = components(model)
    if how == "clip, then step":
        optimizer: Any = _runs.adamw(list(model.parameters()))
    elif how == "clipped adamw":
        optimizer = ClippedAdamW(parts, **_runs.ADAMW, max_norm=0.05)
    else:
        optimizer = clipped(_runs.adamw(list(model.parameters())), parts, max_norm=0.05)
    model.get_submodule("classifier").register_forward_hook(lambda *given: seen.add(str(given[1][0].dtype)))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=10_000)
    kept = []
    for step, batch in enumerate(_runs.batches(model, 6)):
        share = {key: value.chunk(ranks)[rank] for key, value in batch.items()}
        scaler.scale(model(**share).loss).backward()
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        seen |= {type(grad).__name__ for grad in grads}
        if step == poisoned and rank == ranks - 1:
            next(local for grad in grads if (local := cast("DTensor", grad).to_local()).numel())[0] = float("inf")
        before = scaler.get_scale()
        if how == "clip, then step":
            scaler.unscale_(optimizer)
            clip_grad_norm_(parts, 0.05)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        kept.append(scaler.get_scale() == before)
    return {key: cast("DTensor", value).full_tensor() for key, value in _runs.weights(model).items()}, kept, seen
