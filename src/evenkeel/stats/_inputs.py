"""What every statistic asks of its input before it counts anything."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evenkeel.errors import DataError


def flat(values: ArrayLike, name: str) -> NDArray[np.generic]:
    """Return ``values`` as an array of one axis, of whatever type it holds.

    Args:
        values: a sequence of single values.
        name: what the caller calls them.

    Returns:
        The array, shape ``[n]``.

    Raises:
        DataError: if there is not exactly one axis.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise DataError(f"{name} cannot be read as an array: {error}; pass a flat sequence") from error
    if array.ndim != 1:
        raise DataError(f"{name} must have one axis, but their shape is {array.shape}; pass a flat sequence")
    return array


def real(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """Return ``values`` as floating-point numbers, finite or not.

    Args:
        values: a flat sequence of integers or floating-point numbers; it may be empty.
        name: what the caller calls them.

    Returns:
        The numbers, shape ``[n]``.

    Raises:
        DataError: if there is not exactly one axis, or a value is no number.
    """
    array = flat(values, name)
    if array.dtype.kind not in "iuf":
        raise DataError(f"{name} must be numbers, but they are of type {array.dtype}; convert them first")
    return np.asarray(array, dtype=np.float64)


def numbers(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """Return ``values`` as floating-point numbers, all of them finite.

    Args:
        values: a flat sequence of integers or floating-point numbers; it may be empty.
        name: what the caller calls them.

    Returns:
        The numbers, shape ``[n]``.

    Raises:
        DataError: if there is not exactly one axis, or a value is no number, NaN or infinite.
    """
    finite = real(values, name)
    bad = np.flatnonzero(~np.isfinite(finite))
    if bad.size:
        raise DataError(
            f"{name}[{bad[0]}] is {finite[bad[0]]} ({bad.size} of {finite.size} are not finite), and no statistic of "
            "such values means anything; leave diverged runs out, or pass the score that you count them with"
        )
    return finite


def table(values: ArrayLike) -> NDArray[np.float64]:
    """Return ``values`` as a table of finite floating-point numbers.

    Args:
        values: a row for each repetition, shape ``[m, k]``.

    Returns:
        The same numbers.

    Raises:
        DataError: if there are not two axes, or a value is not finite.
    """
    made = np.asarray(values, dtype=np.float64)
    if made.ndim != 2:
        raise DataError(f"values must be a table of two axes, but they have {made.ndim}; give a row each repetition")
    if not np.isfinite(made).all():
        raise DataError("a value is not finite, and has no place in an order; leave out its row or its column")
    return made


def equally_many(labels: NDArray[Any], predictions: NDArray[Any]) -> None:
    """Refuse labels and predictions that are not as many as each other.

    Args:
        labels: the true values, shape ``[n]``.
        predictions: the predicted values.

    Raises:
        DataError: if they are not.
    """
    if labels.size != predictions.size:
        raise DataError(
            f"labels and predictions must be equally many, but there are {labels.size} and {predictions.size}; "
            "pass one prediction for every example, in the same order"
        )


def whole(value: int, name: str, *, at_least: int) -> int:
    """Return ``value`` as a Python integer.

    Args:
        value: an integer of Python's or NumPy's.
        name: what the caller calls it.
        at_least: the smallest value allowed.

    Returns:
        The same number.

    Raises:
        DataError: if it is no integer, or too small.
    """
    try:
        number = operator.index(value)
    except TypeError as error:
        raise DataError(f"{name} must be a whole number, but got {value!r}; pass an int") from error
    if number < at_least:
        raise DataError(f"{name} must be at least {at_least}, but got {number}; pass a larger one")
    return number


def share(value: float, name: str) -> float:
    """Return ``value`` if it lies strictly between 0 and 1.

    Args:
        value: a level of confidence or significance.
        name: what the caller calls it.

    Returns:
        The same number.

    Raises:
        DataError: if it lies elsewhere.
    """
    if not 0 < value < 1:  # also refuses NaN
        raise DataError(f"{name} must lie between 0 and 1, both excluded, but got {value}; 95 % is written 0.95")
    return float(value)


def generator(seed: int | np.random.Generator) -> np.random.Generator:
    """Return the generator of random numbers that ``seed`` stands for.

    Args:
        seed: a non-negative integer, or a generator, which is used (and moved on) as it is.

    Returns:
        The generator.

    Raises:
        DataError: if the seed is neither.
    """
    if isinstance(seed, np.random.Generator):
        return seed
    return np.random.default_rng(whole(seed, "seed", at_least=0))
