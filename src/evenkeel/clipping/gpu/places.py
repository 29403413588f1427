"""Triton functions that find the entries of a box: what the kernels share. Imported where kernels are launched.

A box is a row of int64 in a table, whose columns are

    0 tensor, 1 slot, 2 component, 3 offset, 4 to 6 sizes, 7 to 9 strides    (evenkeel.clipping.gpu._boxes.COLUMNS)

Offset and strides count entries; the offset needs 64 bits, while a box has few enough entries for 32. Where a tensor
begins stands in a second table, the only one that changes between steps.

Entries are moved in vectors of 16 bytes wherever addresses allow it. Only the kernels can see that: views begin
anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

__all__ = ["address_of", "aligned", "count_of", "edges_of", "has_vectors", "is_run", "jit", "places_of"]

jit: Callable[[Callable[..., Any]], Any] = triton.jit  # a type checker knows nothing of triton.jit


@jit
def address_of(box: tl.tensor, starts: tl.tensor, element: tl.constexpr) -> tl.tensor:
    """Return the address of the box's first entry."""
    return tl.load(starts + tl.load(box)) + tl.load(box + 3) * (element.primitive_bitwidth // 8)


@jit
def count_of(box: tl.tensor) -> tl.tensor:
    """Return the number of the box's entries."""
    return (tl.load(box + 4) * tl.load(box + 5) * tl.load(box + 6)).to(tl.int32)


@jit
def is_run(box: tl.tensor) -> tl.tensor:
    """Whether the entries lie behind one another."""
    return (tl.load(box + 4) * tl.load(box + 5) == 1) & (tl.load(box + 9) == 1)


@jit
def has_vectors(box: tl.tensor, address: tl.tensor, vector: tl.constexpr) -> tl.tensor:
    """Whether every row of the box consists of whole 16-byte vectors at addresses divisible by 16."""
    rows = tl.load(box + 6) | tl.load(box + 7) | tl.load(box + 8)
    return (rows % vector == 0) & (address % 16 == 0) & (tl.load(box + 9) == 1)


@jit
def aligned(address: tl.tensor, count: tl.tensor, element: tl.constexpr, vector: tl.constexpr) -> tl.tensor:
    """Return a pointer to the run's first address divisible by 16, the entries before it and the vectors behind it."""
    size: tl.constexpr = element.primitive_bitwidth // 8
    before = tl.minimum((((16 - address % 16) % 16) // size).to(tl.int32), count)
    pointer = tl.multiple_of((address + before.to(tl.int64) * size).to(tl.pointer_type(element)), 16)
    return pointer, before, (count - before) // vector


@jit
def edges_of(count: tl.tensor, before: tl.tensor, vectors: tl.tensor, vector: tl.constexpr) -> tl.tensor:
    """Return places and validity of the few entries before the first vector of a run and behind the last one."""
    lanes = tl.arange(0, 2 * vector) - vector
    behind = vectors * vector + lanes
    return tl.where(lanes < 0, lanes, behind), tl.where(lanes < 0, lanes >= -before, behind < count - before)


@jit
def places_of(
    box: tl.tensor, first: tl.tensor, vectors: tl.tensor, block: tl.constexpr, vector: tl.constexpr, run: tl.constexpr
) -> tl.tensor:
    """Return places, shape ``[block // vector, vector]``, of the vectors from ``first`` on, and which are there."""
    index = first + tl.arange(0, block // vector)
    if run:
        begin = index * vector
    else:
        across = tl.load(box + 6).to(tl.int32) // vector
        down = tl.load(box + 5).to(tl.int32)
        row = index // across
        begin = (row // down).to(tl.int64) * tl.load(box + 7) + (row % down).to(tl.int64) * tl.load(box + 8)
        begin += (index % across).to(tl.int64) * vector * tl.load(box + 9)
        begin = tl.multiple_of(begin, vector)  # so says has_vectors; the compiler cannot know
    return begin[:, None] + tl.arange(0, vector)[None, :], (index < vectors)[:, None]
