"""What every measure asks of its input before it computes anything."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evenkeel.errors import MeasureError

__all__ = ["Floats", "line", "rising", "share_of", "table"]

Floats = NDArray[np.float64]


def line(values: ArrayLike, name: str, *, like: Floats | None = None) -> Floats:
    """Return values as numbers along one axis.

    Args:
        values: numbers, finite or not.
        name: what the caller calls them.
        like: another line that must be as long.

    Returns:
        The numbers, shape ``[n]``.

    Raises:
        MeasureError: if there is another number of axes, or of values.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise MeasureError(f"{name} must have one axis, but their shape is {array.shape}; pass one row at a time")
    if like is not None and len(array) != len(like):
        raise MeasureError(f"there are {len(array)} {name} for {len(like)} others; pass one for each of them")
    return array


def rising(values: ArrayLike, name: str) -> Floats:
    """Return times or steps, which must be finite, not negative, and rise.

    Args:
        values: numbers.
        name: what the caller calls them.

    Returns:
        The numbers, shape ``[n]``.

    Raises:
        MeasureError: if one is not finite, is negative, or is not larger than the one before.
    """
    array = line(values, name)
    if array.size and not (np.isfinite(array).all() and array[0] >= 0 and (np.diff(array) > 0).all()):
        raise MeasureError(f"{name} must rise from 0 or more, but they are {array.tolist()[:8]}; sort them, each once")
    return array


def table(values: ArrayLike, name: str) -> Floats:
    """Return values of several components, or of one.

    Args:
        values: numbers, finite or not.
        name: what the caller calls them.

    Returns:
        The numbers, shape ``[S]`` or ``[S, C]``.

    Raises:
        MeasureError: if there is another number of axes.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in (1, 2):
        raise MeasureError(f"{name} must be of shape [steps] or [steps, components], but it is {array.shape}")
    return array


def share_of(value: float, name: str) -> float:
    """Return a share, which must lie above 0 and at most at 1; else raise a ``MeasureError``."""
    if not 0 < value <= 1:
        raise MeasureError(f"{name} must be a share between 0 and 1, but got {value}; a half is 0.5")
    return float(value)
