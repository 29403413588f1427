"""Norms by operations that change nothing and look at nothing, so that ``torch.func`` can transform them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evenkeel.clipping._norms import row_length

__all__ = ["joint_norm", "pure_norm"]


def pure_norm(tensor: Tensor, norm_type: float, dtype: torch.dtype) -> Tensor:
    """Take the norm of a tensor; it reads it twice and holds a copy, so that powers neither overflow nor vanish.

    Args:
        tensor: the entries.
        norm_type: the order; positive, may be ``inf``.
        dtype: what to accumulate in.

    Returns:
        The norm, 0-dimensional; 0 of nothing.
    """
    if not tensor.numel():
        return torch.zeros((), dtype=dtype, device=tensor.device)
    if tensor.dtype.is_complex:
        tensor = tensor.abs()
    tensor = tensor.to(dtype)
    largest: Tensor = torch.linalg.vector_norm(tensor, float("inf"))
    if norm_type == float("inf"):
        return largest
    scale = _scale(largest.detach())
    norm: Tensor = torch.linalg.vector_norm(_rows(tensor / scale, norm_type), norm_type).to(dtype) * scale
    return norm


def joint_norm(norms: Sequence[Tensor], norm_type: float) -> Tensor:
    """Return the norm of tensors together from the norm of each.

    Args:
        norms: at least one, 0-dimensional, on one device.
        norm_type: the order.

    Returns:
        The norm, 0-dimensional.
    """
    if len(norms) == 1:
        return norms[0]
    each = torch.stack(list(norms))
    scale = _scale(each.detach().amax())
    norm: Tensor = torch.linalg.vector_norm(each / scale, norm_type) * scale
    return norm


def _scale(largest: Tensor) -> Tensor:
    return torch.where((largest > 0) & largest.isfinite(), largest, 1.0)


def _rows(tensor: Tensor, norm_type: float) -> Tensor:
    """Return what has the same norm and can be summed at once on a CPU: few numbers, or numbers in float64."""
    row = row_length(norm_type)
    if tensor.device.type != "cpu" or tensor.numel() <= row:
        return tensor
    flat = tensor.reshape(-1)
    whole = flat.numel() - flat.numel() % row
    rows = torch.linalg.vector_norm(flat[:whole].reshape(-1, row), norm_type, dim=1)
    return torch.cat([rows, flat[whole:]]).double()
