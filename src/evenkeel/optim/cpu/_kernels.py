"""Numba kernels: AdamW's update of many float32 tensors. Imported where they are run.

``places`` holds the addresses of parameters, gradients, first and second moments, int64, shape ``[4, T]``; ``numbers``
what ``evenkeel.optim._numbers`` says, float32, shape ``[K, 7]``, and ``rows`` which of them holds for a tensor.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from evenkeel.clipping.cpu.memory import compiled, entries
from evenkeel.clipping.cpu.sums import square_sum

__all__ = ["clip_and_update", "norm_and_factor", "update"]

Table = np.ndarray[Any, Any]


@compiled
def _update(places: Table, index: int, count: int, factor: Any, numbers: Table) -> None:
    parameters, gradients = entries(places[0, index], count), entries(places[1, index], count)
    means, squares = entries(places[2, index], count), entries(places[3, index], count)
    decay, fresh, stay, fresh_square, step, root, epsilon = numbers
    for entry in range(count):
        gradient = gradients[entry] * factor
        mean = means[entry] + (gradient - means[entry]) * fresh
        square = squares[entry] * stay + gradient * gradient * fresh_square
        means[entry] = mean
        squares[entry] = square
        parameters[entry] = parameters[entry] * decay - step * mean / (np.sqrt(square) / root + epsilon)


@compiled
def _update_without(places: Table, index: int, count: int, numbers: Table) -> None:
    """As if every entry of the gradient were 0, whatever it is."""
    parameters, means, squares = (
        entries(places[0, index], count),
        entries(places[2, index], count),
        entries(places[3, index], count),
    )
    decay, fresh, stay, _, step, root, epsilon = numbers
    for entry in range(count):
        mean = means[entry] - means[entry] * fresh
        square = squares[entry] * stay
        means[entry] = mean
        squares[entry] = square
        parameters[entry] = parameters[entry] * decay - step * mean / (np.sqrt(square) / root + epsilon)


@compiled
def update(
    places: Table, counts: Table, factors: Table, silenced: Table, numbers: Table, rows: Table, first: int, last: int
) -> None:
    """Update every tensor with its gradient times its factor, float32; with zeros where it is silenced."""
    for index in range(first, last):
        if silenced[index]:
            _update_without(places, index, counts[index], numbers[rows[index]])
        else:
            _update(places, index, counts[index], factors[index], numbers[rows[index]])


@compiled
def norm_and_factor(places: Table, index: int, count: int, limit: Any, gain: Any, epsilon: Any) -> tuple[Any, Any]:
    """Return the norm of a tensor's gradient times its gain, and what the gradient is to be multiplied by."""
    norm = np.float32(np.sqrt(square_sum(places[1, index], count)) * abs(gain))
    factor = gain
    if np.isnan(norm):
        factor = norm
    elif limit < norm + epsilon:  # an infinite threshold allows an infinite norm
        factor = gain * (limit / (norm + epsilon))
    return norm, factor


@compiled
def clip_and_update(
    places: Table,
    counts: Table,
    limits: Table,
    norms: Table,
    gains: Table,
    silence: bool,
    epsilon: Any,
    numbers: Table,
    rows: Table,
    first: int,
    last: int,
) -> None:
    """Write every gradient's norm to ``norms`` and update its tensor while the gradient is in the cache.

    ``gains`` is what gradients are multiplied by before they count: the sign of the step, and one over a loss scale.
    """
    for index in range(first, last):
        norm, factor = norm_and_factor(places, index, counts[index], limits[index], gains[index], epsilon)
        norms[index] = norm
        if silence and not np.isfinite(norm):
            _update_without(places, index, counts[index], numbers[rows[index]])
        else:
            _update(places, index, counts[index], factor, numbers[rows[index]])
