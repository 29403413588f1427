"""Norms of gradients, as exact as their sum in float64, at the cost of reading them once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evenkeel.clipping import cpu
from evenkeel.clipping._values import can_look

__all__ = [
    "accumulation_dtype",
    "component_norms",
    "joined_norms",
    "longest_exact",
    "row_length",
    "safe_range",
    "tensor_norms",
]

# On the CPU torch adds all squares into a few float32 lanes, whose rounding errors grow with the number of entries, and
# fastest where entries are alike: 1.7e-3 for BERT-large's word embeddings. In rows of this length, whose norms are put
# together in float64, they stay below 1e-6. Of other powers than squares torch has one lane.
_ROW, _ROW_OF_POWERS = 1024, 128
_LONG = 4 * _ROW  # where all entries are 0.7: 2.5e-6 off; four times as many are 1.3e-5 off

_POWERS = {torch.float32: (-30.0, 37.0), torch.float64: (-290.0, 300.0)}  # decimal exponents, with room for a sum


def accumulation_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """Return the dtype in which norms are accumulated: float64 where a tensor is float64, else float32.

    Args:
        tensors: the tensors whose norms are taken together.

    Returns:
        The dtype.
    """
    return torch.float64 if torch.float64 in {tensor.dtype for tensor in tensors} else torch.float32


def row_length(norm_type: float) -> int:
    """Return how many entries the CPU sums in float32 without losing digits.

    Args:
        norm_type: order of the norm.

    Returns:
        The length of the rows that a long tensor is cut into.
    """
    return _ROW if norm_type == 2.0 else _ROW_OF_POWERS


def longest_exact(norm_type: float) -> int:
    """Return how many entries the CPU may sum in float32 if a digit may be lost: 1e-5 is kept.

    Args:
        norm_type: order of the norm.

    Returns:
        The length of the longest tensor that needs no rows.
    """
    return _LONG if norm_type == 2.0 else _ROW_OF_POWERS


def safe_range(norm_type: float, dtype: torch.dtype) -> tuple[float, float]:
    """Return between which norms no power of an entry is lost to a dtype's range.

    Args:
        norm_type: order of the norm, finite.
        dtype: what powers are accumulated in.

    Returns:
        The smallest and the largest such norm.
    """
    smallest, largest = (10.0 ** min(max(power / norm_type, -300.0), 300.0) for power in _POWERS[dtype])
    return smallest, largest


def component_norms(
    grads: Sequence[Tensor], owners: Sequence[int], *, count: int, norm_type: float, dtype: torch.dtype | None = None
) -> Tensor:
    r"""Return every component's norm, :math:`(\sum_{g \in c} \lVert g \rVert_p^p)^{1/p}`; the largest for infinity.

    Args:
        grads: gradients, on one device.
        owners: for each gradient the index of its component.
        count: number of components, ``C``.
        norm_type: the order ``p``; positive, may be ``inf``.
        dtype: what to accumulate in; None for :func:`accumulation_dtype`.

    Returns:
        Norms, shape ``[C]``; 0 where a component has no gradient.
    """
    dtype = dtype or accumulation_dtype(grads)
    if not grads:
        return torch.zeros(count, dtype=dtype, device="cpu")
    each = tensor_norms(grads, norm_type, dtype)
    if list(owners) == list(range(count)):
        return each
    where = torch.tensor(owners, device="cpu").to(each.device, non_blocking=True)
    return joined_norms(each, where, count=count, norm_type=norm_type)


def joined_norms(each: Tensor, where: Tensor, *, count: int, norm_type: float) -> Tensor:
    """Put the norms of tensors together to those of their owners.

    Args:
        each: norms of tensors, shape ``[T]``.
        where: the owner of each, indices of shape ``[T]`` on the same device.
        count: number of owners.
        norm_type: order of the norm; positive, may be ``inf``.

    Returns:
        Norms, shape ``[count]``; 0 of an owner without tensors.
    """
    wide = each.double()  # a component may have thousands of tensors
    zeros = torch.zeros(count, dtype=wide.dtype, device=wide.device)
    largest = zeros.scatter_reduce(0, where, wide, reduce="amax")
    if norm_type == float("inf"):
        return largest.to(each.dtype)
    # Divide by each component's largest part, so that powers of large norms do not overflow.
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    sums = zeros.index_add_(0, where, (wide / scale[where]) ** norm_type)
    return (sums ** (1 / norm_type) * scale).to(each.dtype)


def tensor_norms(grads: Sequence[Tensor], norm_type: float, dtype: torch.dtype | None = None) -> Tensor:
    """Return the norm of every tensor, by operations on many tensors where these are exact enough.

    Args:
        grads: at least one tensor, all on one device.
        norm_type: the order; positive, may be ``inf``.
        dtype: what to accumulate in; None for :func:`accumulation_dtype`.

    Returns:
        Norms, shape ``[len(grads)]``.
    """
    dtype = dtype or accumulation_dtype(grads)
    if norm_type != 2.0 or torch.compiler.is_compiling() or not cpu.available():
        return _torch_norms(grads, norm_type, dtype)
    readable = cpu.readable(grads)
    if not readable:
        return _torch_norms(grads, norm_type, dtype)
    norms = cpu.norms([grads[index] for index in readable]).to(dtype)
    if len(readable) == len(grads):
        return norms
    apart = set(readable)
    return _merged(
        _torch_norms([grad for index, grad in enumerate(grads) if index not in apart], norm_type, dtype),
        norms,
        places=readable,
    )


def _torch_norms(grads: Sequence[Tensor], norm_type: float, dtype: torch.dtype) -> Tensor:
    long = [index for index, grad in enumerate(grads) if _is_long(grad, norm_type)]
    rows = [_row_norms(grads[index], norm_type, dtype) for index in long]
    apart = set(long)
    short = [grad for index, grad in enumerate(grads) if index not in apart]
    if norm_type == float("inf"):  # the largest of nothing is no number to torch; a norm of nothing is 0
        short = [grad if grad.numel() else grad.new_zeros(1) for grad in short]
    norms = [torch.stack(torch._foreach_norm(short, norm_type, dtype=dtype))] if short else []
    if rows:
        norms.append(torch.stack(torch._foreach_norm(rows, norm_type, dtype=torch.float64)).to(dtype))
    each = norms[0] if len(norms) == 1 else _merged(*norms, places=long)
    if can_look(each):
        _mend_extremes(each, grads, norm_type)
    return each


def _merged(others: Tensor, norms: Tensor, *, places: Sequence[int]) -> Tensor:
    """Put ``norms`` at ``places`` of the result and ``others`` at all others, in order."""
    inserted = set(places)
    rest = [index for index in range(len(others) + len(norms)) if index not in inserted]
    order = torch.tensor([*rest, *places], device="cpu").to(others.device, non_blocking=True)
    both = torch.cat([others, norms])
    return both.index_copy(0, order, both)


def _is_long(grad: Tensor, norm_type: float) -> bool:
    return grad.numel() > longest_exact(norm_type) and grad.is_cpu and norm_type != float("inf")


def _row_norms(grad: Tensor, norm_type: float, dtype: torch.dtype) -> Tensor:
    """Cut a tensor into rows, along the dimension in which entries lie closest together; return their norms."""
    row = row_length(norm_type)
    if not grad.is_contiguous():
        grad = grad.permute(sorted(range(grad.dim()), key=grad.stride().__getitem__, reverse=True))
    if grad.is_contiguous():  # in whatever order of its dimensions
        if grad.numel() % row == 0:
            whole: Tensor = torch.linalg.vector_norm(grad.view(-1, row), norm_type, dim=1, dtype=dtype)
            return whole
        grad = grad.view(-1)
    dim = _innermost(grad)  # of a view, such as the query's columns of a fused projection
    rest = grad.shape[dim] % row
    length = grad.shape[dim] - rest
    parts: list[Tensor] = []
    if length:
        rows = grad.narrow(dim, 0, length).unflatten(dim, (-1, row))  # type: ignore[no-untyped-call]
        parts.append(torch.linalg.vector_norm(rows, norm_type, dim=dim + 1, dtype=dtype).flatten())
    if rest:
        tail = grad.narrow(dim, length, rest)
        parts.append(torch.linalg.vector_norm(tail, norm_type, dim=dim, dtype=dtype).flatten())
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _innermost(grad: Tensor) -> int:
    """Return the dimension along which entries lie closest together, of those that are longer than 1."""
    # By sorting: torch.compile traces no min() with a key.
    return sorted((grad.stride(dim), dim) for dim in range(grad.dim()) if grad.shape[dim] > 1)[0][1]


def _mend_extremes(norms: Tensor, grads: Sequence[Tensor], norm_type: float) -> None:
    """Take again, in float64, the norms whose powers overflow or vanish in float32. Looking at them is free here."""
    if norm_type == float("inf"):
        return
    smallest, largest = safe_range(norm_type, norms.dtype)
    for index, norm in enumerate(norms.tolist()):
        if smallest < norm < largest or not grads[index].numel():
            continue
        top = torch.linalg.vector_norm(grads[index], float("inf"))
        if top.isfinite() and top > 0:
            norms[index] = torch.linalg.vector_norm(grads[index].double() / top, norm_type) * top
