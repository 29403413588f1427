"""The sum of a tensor's squares, compiled by Numba: shared by the kernels that need a norm. Imported by them alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from evenkeel.clipping.cpu.memory import compiled, entries, fused

__all__ = ["square_sum"]

_BLOCK = 1024  # entries; as many squares float32 adds without losing digits, and blocks are added in float64
_SMALLEST, _LARGEST = np.float32(1e-30), np.float32(1e37)  # between these no square was lost to float32's range


@fused
def _block_sum(address: int, count: int) -> Any:
    values = entries(address, count)
    total: Any = np.float32(0)
    for index in range(count):
        total += values[index] * values[index]
    return total


@fused
def _wide_block_sum(address: int, count: int) -> float:
    values = entries(address, count)
    total = 0.0
    for index in range(count):
        wide = np.float64(values[index])
        total += wide * wide
    return total


@compiled
def square_sum(address: int, count: int) -> float:
    """Return the sum of the squares of ``count`` entries, whatever their size."""
    total: float = 0.0
    for start in range(0, count, _BLOCK):
        here, length = address + 4 * start, min(_BLOCK, count - start)
        part = _block_sum(here, length)
        if part > _SMALLEST and part < _LARGEST:
            total += part
        else:  # zeros, very small or very large entries, or such as are not finite
            total += _wide_block_sum(here, length)
    return total
