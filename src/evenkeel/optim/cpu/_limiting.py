r"""Numba kernels: AdamW's update with limited steps, tensor by tensor. Imported where they are run.

The tables are those of ``_kernels``, but for ``numbers``, float32, shape ``[K, 8]``: in place of ``d`` what decay takes
off, the learning rate times the decay; and an eighth, what the norm of :math:`m / (\sqrt v / r + \epsilon)` counts
times, the rate that steps are measured with over :math:`1 - \beta_1^t`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from evenkeel.clipping.cpu.memory import compiled, entries, fused
from evenkeel.clipping.cpu.sums import square_sum
from evenkeel.optim.cpu._kernels import norm_and_factor

__all__ = ["limit_and_update"]

Table = np.ndarray[Any, Any]
_BLOCK = 1024  # entries, whose squares float32 adds without losing digits, while they are in the cache
_SMALLEST, _LARGEST = np.float32(1e-30), np.float32(1e37)  # between these no square was lost to float32's range


@compiled
def _remember(places: Table, index: int, start: int, count: int, factor: Any, numbers: Table) -> None:
    """Let both moments see the gradients of a block."""
    gradients = entries(places[1, index] + 4 * start, count)
    means, squares = entries(places[2, index] + 4 * start, count), entries(places[3, index] + 4 * start, count)
    fresh, stay, fresh_square = numbers[1], numbers[2], numbers[3]
    for entry in range(count):
        gradient = gradients[entry] * factor
        means[entry] += (gradient - means[entry]) * fresh
        squares[entry] = squares[entry] * stay + gradient * gradient * fresh_square


@compiled
def _forget(places: Table, index: int, start: int, count: int, numbers: Table) -> None:
    """Let both moments see zeros, whatever the gradients of a block are."""
    means, squares = entries(places[2, index] + 4 * start, count), entries(places[3, index] + 4 * start, count)
    fresh, stay = numbers[1], numbers[2]
    for entry in range(count):
        means[entry] -= means[entry] * fresh
        squares[entry] *= stay


@fused
def _block_sum(mean: int, square: int, count: int, root: Any, epsilon: Any) -> Any:
    means, squares = entries(mean, count), entries(square, count)
    total: Any = np.float32(0)
    for entry in range(count):
        direction = means[entry] / (np.sqrt(squares[entry]) / root + epsilon)
        total += direction * direction
    return total


@fused
def _wide_block_sum(mean: int, square: int, count: int, root: Any, epsilon: Any) -> float:
    means, squares = entries(mean, count), entries(square, count)
    total = 0.0
    for entry in range(count):
        direction = np.float64(means[entry] / (np.sqrt(squares[entry]) / root + epsilon))
        total += direction * direction
    return total


@compiled
def _direction_sum(places: Table, index: int, count: int, factor: Any, silenced: bool, numbers: Table) -> float:
    """Update the moments of a tensor; return the sum of the squares of its direction, before bias correction."""
    root, epsilon = numbers[5], numbers[6]
    total: float = 0.0
    for start in range(0, count, _BLOCK):
        length = min(_BLOCK, count - start)
        if silenced:
            _forget(places, index, start, length, numbers)
        else:
            _remember(places, index, start, length, factor, numbers)
        mean, square = places[2, index] + 4 * start, places[3, index] + 4 * start
        part = _block_sum(mean, square, length, root, epsilon)
        if part > _SMALLEST and part < _LARGEST:
            total += part
        else:  # zeros, very small or very large entries, or such as are not finite
            total += _wide_block_sum(mean, square, length, root, epsilon)
    return total


@compiled
def _move(places: Table, index: int, count: int, part: Any, numbers: Table) -> None:
    """Make a part of a tensor's step, and let it decay by as much."""
    parameters = entries(places[0, index], count)
    means, squares = entries(places[2, index], count), entries(places[3, index], count)
    kept, step = np.float32(1 - np.float64(numbers[0]) * part), np.float32(np.float64(numbers[4]) * part)
    root, epsilon = numbers[5], numbers[6]
    for entry in range(count):
        direction = means[entry] / (np.sqrt(squares[entry]) / root + epsilon)
        parameters[entry] = parameters[entry] * kept - step * direction


@compiled
def limit_and_update(
    places: Table,
    counts: Table,
    limits: Table,
    norms: Table,
    gains: Table,
    silence: bool,
    epsilon: Any,
    numbers: Table,
    rows: Table,
    shares: Table,
    floors: Table,
    steps: Table,
    first: int,
    last: int,
) -> None:
    """Clip every gradient, update its moments, and make as much of the step as it may, while all is in the cache.

    ``limits``, ``norms``, ``gains``, ``silence`` and ``epsilon`` are those of ``clip_and_update``. ``shares`` and
    ``floors`` say what is allowed, float64, shape ``[T]``. ``steps``, float64, shape ``[3, T]``, is written: the norms
    of the steps, what was allowed, and what part of them was made.
    """
    for index in range(first, last):
        count, own = counts[index], numbers[rows[index]]
        norm, factor = norm_and_factor(places, index, count, limits[index], gains[index], epsilon)
        norms[index] = norm
        silenced = silence and not np.isfinite(norm)
        moved = np.sqrt(_direction_sum(places, index, count, factor, silenced, own)) * np.float64(own[7])
        allowed = shares[index] * (np.sqrt(square_sum(places[0, index], count)) + floors[index])
        part = 1.0 if moved <= allowed else allowed / moved
        steps[0, index], steps[1, index], steps[2, index] = moved, allowed, part
        _move(places, index, count, part, own)
