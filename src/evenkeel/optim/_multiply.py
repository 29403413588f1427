"""Many tensors times factors of their components, in place and by few calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from evenkeel.clipping import gpu
from evenkeel.partition import Components

__all__ = ["multiply_"]

_ARRANGEMENTS = 64


def multiply_(parts: Components, tensors: Sequence[Tensor], owners: Sequence[int], factors: Tensor) -> None:
    """Multiply every tensor by its component's factor, in place.

    Args:
        parts: the components, ``C`` of them; tables of kernels are kept with them.
        tensors: views of what they own, none of which share memory.
        owners: for each tensor the index of its component.
        factors: shape ``[C]``, on whichever device.
    """
    places: dict[torch.device, list[int]] = {}
    for place, tensor in enumerate(tensors):
        places.setdefault(tensor.device, []).append(place)
    for device, here in places.items():
        chosen, own = [tensors[place] for place in here], [owners[place] for place in here]
        there = factors.to(device)
        if _for_kernels(chosen):
            _segments(parts, chosen, own).scale_(chosen, there)
        else:
            single = there.unbind()
            torch._foreach_mul_(chosen, [single[owner] for owner in own])


def _for_kernels(tensors: Sequence[Tensor]) -> bool:
    return (
        not torch.compiler.is_compiling()
        and gpu.available(tensors[0].device)
        and all(tensor.dtype in gpu.DTYPES and tensor.layout is torch.strided for tensor in tensors)
    )


def _segments(parts: Components, tensors: Sequence[Tensor], owners: Sequence[int]) -> gpu.Segments:
    """Return what launches the kernels; made once for each arrangement, which a CUDA graph may go on reading."""
    made: dict[Any, list[gpu.Segments]] = parts.memory.setdefault("multiply", {})
    arrangements = made.setdefault((tensors[0].device, tuple(owners)), [])
    for known in arrangements:
        if known.fits(tensors):
            return known
    new = gpu.Segments(tensors, owners, len(parts))
    if len(made) <= _ARRANGEMENTS:
        arrangements.append(new)
    return new
