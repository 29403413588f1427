"""Sums of squares, of a tensor or of a difference, compiled by Numba: for kernels that need a norm, and no others."""

from __future__ import annotations

from typing import Any

import numpy as np

from evenkeel.clipping.cpu.memory import compiled, entries, fused

__all__ = ["difference_sum", "square_sum"]

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


@fused
def _block_difference_sum(address: int, other: int, count: int) -> Any:
    values, others = entries(address, count), entries(other, count)
    total: Any = np.float32(0)
    for index in range(count):
        difference = values[index] - others[index]
        total += difference * difference
    return total


@fused
def _wide_block_difference_sum(address: int, other: int, count: int) -> float:
    values, others = entries(address, count), entries(other, count)
    total = 0.0
    for index in range(count):
        wide = np.float64(values[index]) - np.float64(others[index])
        total += wide * wide
    return total


@compiled
def difference_sum(address: int, other: int, count: int) -> float:
    """Return the sum of the squares of what ``count`` entries differ by from others, whatever their size."""
    total: float = 0.0
    for start in range(0, count, _BLOCK):
        here, there, length = address + 4 * start, other + 4 * start, min(_BLOCK, count - start)
        part = _block_difference_sum(here, there, length)
        if part > _SMALLEST and part < _LARGEST:
            total += part
        else:
            total += _wide_block_difference_sum(here, there, length)
    return total
