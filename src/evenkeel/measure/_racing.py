"""How far apart in time the components of a run converge."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from evenkeel.errors import MeasureError
from evenkeel.measure._arrays import line, share_of

__all__ = ["Racing", "racing", "weighted_quantile"]


@dataclass(frozen=True, kw_only=True)
class Racing:
    """How far apart in time components are, in the unit of their times.

    Attributes:
        components: how many have a time; with none everything else is NaN.
        median: the time by which half of them are there.
        spread: the interquartile range, every component counting alike.
        median_by_size: the time by which those with half of all entries are there.
        spread_by_size: the interquartile range, every component counting by its entries.
    """

    components: int
    median: float
    spread: float
    median_by_size: float
    spread_by_size: float


def weighted_quantile(values: ArrayLike, weights: ArrayLike, share: float) -> float:
    r"""Return the smallest value up to which lies a share of the weights.

    .. math::

        Q(q) = \min \Big\{ x_i : \sum_{j : x_j \le x_i} w_j \ge q \sum_j w_j \Big\}

    Nothing is interpolated: it is one of the values.

    Args:
        values: numbers, all finite, shape ``[n]``.
        weights: not negative, with a sum above 0; shape ``[n]``.
        share: the share q.

    Returns:
        The value; NaN where there are none.

    Raises:
        MeasureError: if a value is not finite, a weight is negative or not finite, all are 0, or ``share`` is none.

    Source: Hyndman & Fan 1996, "Sample quantiles in statistical packages", definition 1, with weights.

    Example:
        >>> weighted_quantile([3.0, 1.0, 2.0], [1, 1, 8], 0.25)
        2.0
    """
    numbers = line(values, "values")
    mass = line(weights, "weights", like=numbers)
    share = share_of(share, "share")
    if not numbers.size:
        return float("nan")
    if not np.isfinite(numbers).all():
        raise MeasureError("a value is not finite, and has no place among the others; leave those out")
    if not np.isfinite(mass).all() or mass.min() < 0 or mass.sum() <= 0:
        raise MeasureError("weights must be finite, none negative and not all 0; pass sizes, or the same for all")
    order = np.argsort(numbers, kind="stable")
    reached = np.cumsum(mass[order])
    enough = reached >= share * reached[-1] * (1 - 1e-12)  # sums of weights round
    return float(numbers[order][np.argmax(enough)])


def racing(times: ArrayLike, sizes: ArrayLike | None = None) -> Racing:
    r"""Return how far apart in time the components of a run converge: the interquartile range of their times.

    .. math::

        Q(3/4) - Q(1/4)

    with the quantiles of :func:`weighted_quantile`, once with weight 1 for each component and once with its size. Times
    are half times as shares of training; so 0 says that all converge together, 0.5 that the middle half of them lies
    half a training apart.

    Args:
        times: a time for each component, NaN of those that never moved; shape ``[C]``.
        sizes: numbers of their entries, shape ``[C]``; None counts all alike.

    Returns:
        The spread, weighted and not.

    Raises:
        MeasureError: if there are not as many sizes as times, or one is not positive.

    Source: ours; after Yang & Ma 2022, arXiv 2210.10325, section 3, who show it in pictures.

    Example:
        >>> found = racing([0.1, 0.2, 0.3, 0.8], [1, 1, 1, 97])
        >>> found.spread, found.spread_by_size
        (0.19999999999999998, 0.0)
    """
    moments = line(times, "times")
    entries = np.ones_like(moments) if sizes is None else line(sizes, "sizes", like=moments)
    if (entries <= 0).any():
        raise MeasureError("a size is not positive, and a component without entries converges at no time; leave it out")
    known = np.isfinite(moments)
    moments, entries = moments[known], entries[known]
    low, middle, high = (weighted_quantile(moments, np.ones_like(moments), share) for share in (0.25, 0.5, 0.75))
    small, half, large = (weighted_quantile(moments, entries, share) for share in (0.25, 0.5, 0.75))
    return Racing(
        components=int(moments.size),
        median=middle,
        spread=high - low,
        median_by_size=half,
        spread_by_size=large - small,
    )
