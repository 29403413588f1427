"""Numba kernels over many float32 tensors: sums of squares, scaling, and both at once. Imported where they are run.

Every kernel takes the tensors ``first`` to ``last`` of its tables, so that several threads can share the work.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from evenkeel.clipping.cpu.memory import compiled, entries
from evenkeel.clipping.cpu.sums import difference_sum, square_sum

__all__ = ["clip", "difference_sums", "scale", "square_sums"]

Table = np.ndarray[Any, Any]


@compiled
def square_sums(addresses: Table, counts: Table, sums: Table, first: int, last: int) -> None:
    """Write the sum of every tensor's squares to ``sums``, float64."""
    for index in range(first, last):
        sums[index] = square_sum(addresses[index], counts[index])


@compiled
def difference_sums(addresses: Table, counts: Table, others: Table, sums: Table, first: int, last: int) -> None:
    """Write the sum of the squares of every tensor's difference from another one to ``sums``, float64."""
    for index in range(first, last):
        sums[index] = difference_sum(addresses[index], others[index], counts[index])


@compiled
def _multiply(address: int, count: int, factor: np.float32) -> None:
    values = entries(address, count)
    for index in range(count):
        values[index] *= factor


@compiled
def scale(addresses: Table, counts: Table, factors: Table, first: int, last: int) -> None:
    """Multiply every tensor by its factor, float32; where one is 1, entries are neither read nor written."""
    for index in range(first, last):
        if factors[index] != 1:  # of NaN too
            _multiply(addresses[index], counts[index], factors[index])


@compiled
def clip(
    addresses: Table,
    counts: Table,
    limits: Table,
    norms: Table,
    changed: Table,
    silence: bool,
    epsilon: np.float32,
    first: int,
    last: int,
) -> None:
    """Write every tensor's norm to ``norms`` and scale it while it is in the cache; numbers are float32.

    ``changed`` tells which tensors were written.
    """
    for index in range(first, last):
        norm = np.float32(np.sqrt(square_sum(addresses[index], counts[index])))
        norms[index] = norm
        changed[index] = True
        if silence and not np.isfinite(norm):
            entries(addresses[index], counts[index])[:] = 0
        elif np.isnan(norm):
            _multiply(addresses[index], counts[index], norm)
        elif limits[index] < norm + epsilon:  # an infinite threshold allows an infinite norm
            _multiply(addresses[index], counts[index], limits[index] / (norm + epsilon))
        else:
            changed[index] = False
