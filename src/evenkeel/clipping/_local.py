"""This rank's norms and scaling, device by device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evenkeel.clipping._gradients import Gradients
from evenkeel.clipping._norms import accumulation_dtype, component_norms
from evenkeel.clipping._plan import Plan
from evenkeel.clipping._scale import scale
from evenkeel.clipping.gpu import DTYPES, Segments, available

__all__ = ["local_norms", "scale_all"]

_ARRANGEMENTS = 64


def local_norms(read: Sequence[Tensor], slots: Sequence[int], plan: Plan, norm_type: float) -> Tensor:
    """Return the norms of what this rank has, on the device of the first tensor.

    Args:
        read: tensors of this rank.
        slots: the slot of the plan that each belongs to.
        plan: what the slots are.
        norm_type: order of the norm.

    Returns:
        Norms of the slots, shape ``[S]``, float32 (float64 where a tensor is float64); 0 where a slot has no tensor.
    """
    count = len(plan.owners)
    if not read:
        parameters = [parameter for parameter, _, _ in plan.entries]  # other ranks' norms have the dtype of theirs
        return torch.zeros(count, dtype=accumulation_dtype(parameters), device=parameters[0].device)
    dtype = accumulation_dtype(read)
    each = [
        segments.norms(there, norm_type).to(dtype)
        if (segments := _segments(plan, there, indices, count))
        else component_norms(there, indices, count=count, norm_type=norm_type, dtype=dtype)
        for there, indices in _by_device(read, slots).values()
    ]
    if len(each) == 1:
        return each[0]
    home = each[0].device
    norms: Tensor = torch.linalg.vector_norm(torch.stack([norms.to(home) for norms in each]), norm_type, dim=0)
    return norms


def scale_all(gradients: Gradients, plan: Plan, coefficients: Tensor, silenced: Tensor | None) -> None:
    """Multiply every gradient by its component's coefficient, on whichever device it lies.

    Args:
        gradients: the gradients of the step.
        plan: where they belong.
        coefficients: shape ``[C]``.
        silenced: whose gradients become exact zeros, booleans of shape ``[C]``; None for no one's.
    """
    for device, (write, owners) in _by_device(gradients.write, gradients.owners).items():
        factors = coefficients.to(device)
        off = None if silenced is None else silenced.to(device)
        if segments := _segments(plan, write, owners, len(plan.names)):
            segments.scale_(write, factors, off)
        else:
            scale(write, owners, factors, off)


def _segments(plan: Plan, tensors: Sequence[Tensor], indices: Sequence[int], count: int) -> Segments | None:
    """Return what launches the multi-tensor kernels for ``tensors``; None where they cannot be used.

    It is made once for each arrangement and kept as long as the plan: a CUDA graph may go on reading its tables. Where
    ever other gradients are missing (experts that see no token), it is made anew instead of filling the memory.
    """
    device = tensors[0].device
    if torch.compiler.is_compiling() or not available(device) or any(tensor.dtype not in DTYPES for tensor in tensors):
        return None
    arrangements = plan.segments.setdefault((device, count, tuple(indices)), [])
    for known in arrangements:
        if known.fits(tensors):
            return known
    made = Segments(tensors, indices, count)
    if len(plan.segments) <= _ARRANGEMENTS:
        arrangements.append(made)
    return made


def _by_device(tensors: Sequence[Tensor], indices: Sequence[int]) -> dict[torch.device, tuple[list[Tensor], list[int]]]:
    found: dict[torch.device, tuple[list[Tensor], list[int]]] = {}
    for tensor, index in zip(tensors, indices, strict=True):
        there = found.setdefault(tensor.device, ([], []))
        there[0].append(tensor)
        there[1].append(index)
    return found
