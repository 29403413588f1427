"""Scaling gradients by the coefficients of their components."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evenkeel.clipping import cpu
from evenkeel.clipping._values import can_look

__all__ = ["scale"]


def scale(grads: Sequence[Tensor], owners: Sequence[int], coefficients: Tensor, silenced: Tensor | None) -> None:
    """Multiply every gradient by its component's coefficient, in place.

    Args:
        grads: gradients, on one device.
        owners: for each gradient the index of its component.
        coefficients: shape ``[C]``, on the same device; where one is exactly 1 the gradient keeps its bits.
        silenced: booleans of shape ``[C]``: whose gradients become exact zeros, whatever they hold; None for no one's.
    """
    if can_look(coefficients):
        _scale_on_cpu(grads, owners, coefficients, silenced)
        return
    factors = coefficients.unbind()
    torch._foreach_mul_(list(grads), [factors[owner] for owner in owners])
    if silenced is not None:
        off = silenced.unbind()
        for grad, owner in zip(grads, owners, strict=True):  # 0 * NaN is NaN: select, do not multiply
            grad.masked_fill_(off[owner], 0.0)


def _scale_on_cpu(
    grads: Sequence[Tensor], owners: Sequence[int], coefficients: Tensor, silenced: Tensor | None
) -> None:
    """Leave alone what is not clipped: looking at the coefficients costs nothing here."""
    off = [] if silenced is None else silenced.tolist()
    if silenced is not None and any(off):
        for grad in (grad for grad, owner in zip(grads, owners, strict=True) if off[owner]):
            grad.zero_()
        coefficients = coefficients.masked_fill(silenced, 1.0)
    free = [value == 1.0 for value in coefficients.tolist()]
    clipped = [(grad, owner) for grad, owner in zip(grads, owners, strict=True) if not free[owner]]
    if clipped and coefficients.dtype is torch.float32 and cpu.available():
        readable = cpu.readable([grad for grad, _ in clipped])
        many = [clipped[index] for index in readable]
        cpu.scale_([grad for grad, _ in many], coefficients[[owner for _, owner in many]])
        apart = set(readable)
        clipped = [pair for index, pair in enumerate(clipped) if index not in apart]
    if not clipped:
        return
    factors = coefficients.unbind()  # tensors: torch rounds numbers to the gradients' dtype first
    torch._foreach_mul_([grad for grad, _ in clipped], [factors[owner] for _, owner in clipped])
