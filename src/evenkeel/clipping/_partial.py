"""Gradients that are placed otherwise than their parameters: mostly shares of a sum that nobody has taken yet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Replicate

__all__ = ["settled"]


def settled(parameters: Iterable[Tensor]) -> dict[int, DTensor]:
    """Place gradients as their parameters are placed; all shares of sums on a mesh travel together.

    With sequence parallelism every norm's gradient is a share of a sum. Where such a gradient is missing on some ranks
    only, these ranks wait for each other for ever, as they would in the optimizer.

    Args:
        parameters: the parameters, each of them as often as one likes.

    Returns:
        By the ``id`` of the parameter, its gradient as it is after all sums, where that is not the gradient it has.
    """
    batches: dict[object, dict[int, tuple[DTensor, Sequence[Placement]]]] = {}
    for parameter in parameters:
        grad = parameter.grad
        if isinstance(grad, DTensor) and isinstance(parameter, DTensor) and grad.placements != parameter.placements:
            key = (grad.device_mesh, grad.placements, parameter.placements, grad.dtype)
            batches.setdefault(key, {})[id(parameter)] = (grad, parameter.placements)
    found: dict[int, DTensor] = {}
    for batch in batches.values():
        grad, placements = next(iter(batch.values()))
        grads = [grad for grad, _ in batch.values()]
        pairs = zip(grad.placements, placements, strict=True)
        if all(has == wants or (has.is_partial() and wants.is_replicate()) for has, wants in pairs):
            found |= zip(batch, _summed(grads, placements), strict=True)
        else:
            found |= {key: grad.redistribute(placements=placements) for key, (grad, _) in batch.items()}
    return found


def _summed(grads: Sequence[DTensor], placements: Sequence[Placement]) -> list[DTensor]:
    """Sum shares over the dimensions of the mesh that hold them; in these, and in no other, something is sent."""
    mesh = grads[0].device_mesh
    shares = [placement if placement.is_partial() else Replicate() for placement in grads[0].placements]
    stored = [grad.to_local() for grad in grads]
    flat = torch.cat([local.flatten() for local in stored])
    whole = DTensor.from_local(flat, mesh, shares).redistribute(placements=[Replicate()] * mesh.ndim).to_local()
    parts = torch.split(whole, [local.numel() for local in stored])
    return [
        DTensor.from_local(part.view(local.shape), mesh, placements, shape=grad.shape, stride=grad.stride())
        for grad, local, part in zip(grads, stored, parts, strict=True)
    ]
