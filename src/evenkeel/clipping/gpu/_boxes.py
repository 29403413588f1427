"""Cutting tensors of any shape and strides into boxes that a program of a GPU kernel takes at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["COLUMNS", "boxes", "collapse"]

_DIMS = 3  # dimensions of a box
COLUMNS = ("tensor", "slot", "component", "offset", "size0", "size1", "size2", "stride0", "stride1", "stride2")


def boxes(shape: Sequence[int], strides: Sequence[int], *, chunk: int, tensor: int, component: int) -> Tensor:
    """Cut a tensor into boxes of three dimensions.

    Args:
        shape: the tensor's shape.
        strides: its strides, in entries.
        chunk: entries of a box at most, fewer than 2**31.
        tensor: the tensor's number, for the table.
        component: its component's number, for the table.

    Returns:
        One row of :data:`COLUMNS` for each box, int64, on the CPU; every entry lies in exactly one box. Slots are 0.

    Example:
        >>> boxes((2, 3), (3, 1), chunk=4, tensor=7, component=5)[:, 3:7]    # two runs: offset, and sizes
        tensor([[0, 1, 1, 4],
                [4, 1, 1, 2]])
    """
    if not math.prod(shape):
        return torch.zeros(0, len(COLUMNS), dtype=torch.int64, device="cpu")
    sizes, steps = collapse(shape, strides)
    extents = _extents(sizes, chunk)
    # The corners of all boxes: one axis for each dimension, multiplied out.
    axes = [torch.arange(0, size, extent, device="cpu") for size, extent in zip(sizes, extents, strict=True)]
    corners = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    whole, most, apart = (torch.tensor(values, device="cpu") for values in (sizes, extents, steps))
    table = torch.zeros(len(corners), len(COLUMNS), dtype=torch.int64, device="cpu")
    table[:, 0], table[:, 2] = tensor, component
    table[:, 3] = (corners * apart).sum(1)
    table[:, 4:7] = (whole - corners).minimum(most)[:, -_DIMS:]
    table[:, 7:10] = apart[-_DIMS:]
    return table


def collapse(shape: Sequence[int], strides: Sequence[int]) -> tuple[list[int], list[int]]:
    """Describe the same entries by as few dimensions as possible, but at least three, the densest last.

    Args:
        shape: a tensor's shape, without zeros.
        strides: its strides, in entries.

    Returns:
        Sizes and strides. Dimensions of size 1 that fill up to three stand first, with stride 0.

    Example:
        >>> collapse((4, 2, 3), (18, 3, 1))          # 4 rows of 6 entries, out of rows of 18
        ([1, 4, 6], [0, 18, 1])
    """
    sizes: list[int] = []
    steps: list[int] = []
    # The order of entries matters to no norm, so that a transposed matrix is one run as well.
    for step, size in sorted(zip(strides, shape, strict=True), reverse=True):
        if size == 1:
            continue
        if sizes and steps[-1] == size * step:
            sizes[-1], steps[-1] = sizes[-1] * size, step
        else:
            sizes.append(size)
            steps.append(step)
    if not sizes:
        sizes, steps = [1], [1]
    missing = max(0, _DIMS - len(sizes))
    return [1] * missing + sizes, [0] * missing + steps


def _extents(sizes: Sequence[int], chunk: int) -> list[int]:
    """Return a box's size in every dimension, from the densest on; 1 in those beyond the third."""
    extents = [1] * len(sizes)
    room = chunk
    for dim in range(len(sizes) - 1, len(sizes) - 1 - _DIMS, -1):
        extents[dim] = min(sizes[dim], room)
        room //= extents[dim]
    return extents
