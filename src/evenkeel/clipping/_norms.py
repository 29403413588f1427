"""Norms of gradients, as exact as their sum in float64, at the cost of reading them once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["component_norms", "tensor_norms"]

# On the CPU torch adds all squares into a few float32 lanes, whose rounding errors grow with the number of entries:
# 1.7e-3 for BERT-large's word embeddings. In rows of this length they stay below 1e-6.
_ROW = 1024
_LONG = 64 * _ROW


def component_norms(grads: Sequence[Tensor], owners: Sequence[int], *, count: int, norm_type: float) -> Tensor:
    r"""Return every component's norm, :math:`(\sum_{g \in c} \lVert g \rVert_p^p)^{1/p}`; the largest for infinity.

    Args:
        grads: gradients, on one device.
        owners: for each gradient the index of its component.
        count: number of components, ``C``.
        norm_type: the order ``p``; positive, may be ``inf``.

    Returns:
        Norms, shape ``[C]``, float32 (float64 where a gradient is float64); 0 where a component has no gradient.
    """
    each = tensor_norms(grads, norm_type)
    if list(owners) == list(range(count)):
        return each
    where = torch.tensor(owners).to(each.device, non_blocking=True)
    zeros = torch.zeros(count, dtype=each.dtype, device=each.device)
    largest = zeros.scatter_reduce(0, where, each, reduce="amax")
    if norm_type == float("inf"):
        return largest
    # Divide by each component's largest part, so that powers of large norms do not overflow.
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    return zeros.index_add_(0, where, (each / scale[where]) ** norm_type) ** (1 / norm_type) * scale


def tensor_norms(grads: Sequence[Tensor], norm_type: float) -> Tensor:
    """Return the norm of every tensor, shape ``[len(grads)]``, by multi-tensor operations where that is exact enough.

    Args:
        grads: at least one tensor, all on one device.
        norm_type: the order; positive, may be ``inf``.

    Returns:
        Norms, float32 (float64 where a tensor is float64).
    """
    dtype = torch.float64 if any(grad.dtype == torch.float64 for grad in grads) else torch.float32
    norms: list[Tensor | None] = [
        _norm(grad, norm_type, dtype) if _is_long(grad, norm_type) else None for grad in grads
    ]
    short = [grad for grad, norm in zip(grads, norms, strict=True) if norm is None]
    if norm_type == float("inf"):  # the largest of nothing is no number to torch; a norm of nothing is 0
        short = [grad if grad.numel() else grad.new_zeros(1) for grad in short]
    rest = iter(torch._foreach_norm(short, norm_type, dtype=dtype) if short else ())
    return torch.stack([(next(rest) if norm is None else norm).to(dtype) for norm in norms])


def _is_long(grad: Tensor, norm_type: float) -> bool:
    return grad.numel() > _LONG and grad.device.type == "cpu" and norm_type != float("inf")


def _norm(grad: Tensor, norm_type: float, dtype: torch.dtype) -> Tensor:
    """Take the norm of rows, and the norm of those."""
    if grad.is_contiguous():
        grad = grad.view(-1)
    dim = _innermost(grad)  # of a view, such as the query's columns of a fused projection
    whole = grad.shape[dim] - grad.shape[dim] % _ROW
    rows: Tensor = torch.linalg.vector_norm(
        grad.narrow(dim, whole, grad.shape[dim] - whole), norm_type, dim=dim, dtype=dtype
    )
    if whole:
        main = grad.narrow(dim, 0, whole).unflatten(dim, (-1, _ROW))  # type: ignore[no-untyped-call]
        rows = torch.cat(
            [torch.linalg.vector_norm(main, norm_type, dim=dim + 1, dtype=dtype).flatten(), rows.flatten()]
        )
    if rows.numel() > _LONG:
        return _norm(rows, norm_type, dtype)
    norm: Tensor = torch.linalg.vector_norm(rows, norm_type)
    return norm


def _innermost(grad: Tensor) -> int:
    """Return the dimension along which entries lie closest together, of those that are longer than 1."""
    return min((dim for dim in range(grad.dim()) if grad.shape[dim] > 1), key=lambda dim: grad.stride()[dim])
