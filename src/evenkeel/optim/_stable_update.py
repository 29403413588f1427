"""The update of StableAdamW: many tensors with few calls, and one mean over all shards of each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate

__all__ = ["alike", "update"]

_CACHED = 2**17  # entries on a CPU that are updated together: calls are shared, and all of it stays in the cache
_COARSE = ("cpu",)  # where torch's norm adds float32 one by one: of 60 million entries it is 3 in a thousand off


def alike(parameters: Sequence[Tensor], foreach: bool | None) -> Iterator[list[Tensor]]:
    """Sort parameters into lists that can be updated together: of one device, dtype and placement.

    Args:
        parameters: the parameters.
        foreach: whether such lists are as long as they can be, or of one parameter; None for what costs least: on a CPU
            lists that fit into the cache, elsewhere and for sharded parameters, each list of which is one reduction, as
            long as they can be.

    Yields:
        The lists, in the same order on every rank.
    """
    found: dict[tuple[torch.device, torch.dtype, object], list[Tensor]] = {}
    for parameter in parameters:
        place = (parameter.device_mesh, parameter.placements) if isinstance(parameter, DTensor) else None
        found.setdefault((parameter.device, parameter.dtype, place), []).append(parameter)
    for (device, _, placed), fitting in found.items():
        if foreach is None and device.type == "cpu" and placed is None:
            yield from _split(fitting, _CACHED)
        else:
            yield from _split(fitting, 1 if foreach is False else math.inf)


def _split(parameters: Sequence[Tensor], most: float) -> list[list[Tensor]]:
    """Cut a list whenever it holds as many entries as ``most``."""
    lists: list[list[Tensor]] = []
    held = most
    for parameter in parameters:
        if held >= most:
            lists.append([])
            held = 0
        lists[-1].append(parameter)
        held += parameter.numel()
    return lists


def update(group: dict[str, Any], parameters: Sequence[Tensor], states: Sequence[dict[str, Any]]) -> Tensor:
    """Update parameters that are alike, ``K`` of them, as :class:`StableAdamW` says.

    Args:
        group: the settings.
        parameters: the parameters, each with a gradient.
        states: the state of each; its step counter is on the CPU.

    Returns:
        ``R`` of each, shape ``[K]``, on their device.
    """
    (beta1, beta2), eps, decay = group["betas"], group["eps"], group["weight_decay"]
    weights = [_local(parameter) for parameter in parameters]
    wide = torch.promote_types(weights[0].dtype, torch.float32)
    grads = [_local(_placed(parameter)).to(wide) for parameter in parameters]
    kept = [_local(state[name]) for name in ("exp_avg", "exp_avg_sq") for state in states]
    moments = [moment.to(wide) for moment in kept]  # the same tensors, unless they are narrower
    means, squares = moments[: len(states)], moments[len(states) :]
    steps = [state["step"] for state in states]
    torch._foreach_add_(steps, 1.0)
    counts = torch.stack(steps).tolist()

    torch._foreach_lerp_(means, torch._foreach_neg(grads) if group["maximize"] else grads, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
    if wide != weights[0].dtype:
        torch._foreach_copy_(kept, moments)

    # Both biases are left to single numbers: v_hat = v / late ** 2, m_hat = m / soon.
    soon, late = [1 - beta1**count for count in counts], [math.sqrt(1 - beta2**count) for count in counts]
    least = [eps * one for one in late]
    roots = torch._foreach_sqrt(squares)
    # Divided before squaring: neither eps ** 2 nor g ** 2 can leave the range of the dtype.
    rms = _rms(torch._foreach_div(grads, torch._foreach_maximum(roots, least)), late, parameters)

    torch._foreach_add_(roots, least)
    torch._foreach_mul_(roots, [one / another for one, another in zip(soon, late, strict=True)])
    changes = torch._foreach_div(means, roots)
    if decay:
        torch._foreach_add_(changes, weights, alpha=decay)
    rate = group["lr"].reshape(()) if isinstance(group["lr"], Tensor) else group["lr"]
    torch._foreach_mul_(changes, list((rate / rms.clamp_min(1.0)).unbind()))
    torch._foreach_sub_(weights, changes)
    return rms


def _rms(ratios: Sequence[Tensor], factors: Sequence[float], parameters: Sequence[Tensor]) -> Tensor:
    """Return the root mean square of each whole parameter's ratios, times its factor; what is here is overwritten."""
    sizes = [max(parameter.numel(), 1) / factor**2 for parameter, factor in zip(parameters, factors, strict=True)]
    if ratios[0].device.type in _COARSE:
        means = torch.stack([ratio.square_().sum() / size for ratio, size in zip(ratios, sizes, strict=True)])
    else:
        norms = list(torch._foreach_norm(tuple(ratios)))
        torch._foreach_div_(norms, [math.sqrt(size) for size in sizes])
        means = torch.stack(norms).square_()
    first = parameters[0]
    if isinstance(first, DTensor):
        shares = [Replicate() if placement.is_replicate() else Partial() for placement in first.placements]
        summed = DTensor.from_local(means, first.device_mesh, shares)
        means = summed.redistribute(placements=[Replicate()] * first.device_mesh.ndim).to_local()
    return means.sqrt()


def _placed(parameter: Tensor) -> Tensor:
    """Return the gradient, placed as its parameter is: with sequence parallelism it may be a share of a sum."""
    grad = cast(Tensor, parameter.grad)
    if isinstance(parameter, DTensor) and isinstance(grad, DTensor) and grad.placements != parameter.placements:
        return grad.redistribute(placements=parameter.placements)
    return grad


def _local(tensor: Tensor) -> Tensor:
    """Return the entries that are stored here; what is written to them is written to the tensor."""
    local: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local
