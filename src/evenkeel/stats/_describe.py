"""One cell of a study in a few numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from evenkeel.stats._inputs import numbers


@dataclass(frozen=True, kw_only=True)
class Description:
    """The scores of one cell (one method on one task) in a few numbers, all in the units of the score but ``n``.

    Attributes:
        n: how many scores there are; with none, everything else is NaN.
        mean: their mean.
        std: the sample standard deviation, divided by ``n - 1``; NaN for one score, exactly 0 for equal ones.
        min: the smallest.
        median: the median.
        max: the largest.
        interquartile_mean: the mean without the ``floor(n / 4)`` smallest and as many largest (SciPy's ``trim_mean``
            at 0.25, as in Agarwal et al. 2021, arXiv 2108.13264); below four scores it is the mean.
    """

    n: int
    mean: float
    std: float
    min: float
    median: float
    max: float
    interquartile_mean: float


def sample_std(scores: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    """Return the sample standard deviation (``ddof=1``) along an axis, exactly 0 where all scores are equal.

    NumPy alone gives 1e-17 for ``[0.1, 0.1, 0.1]``, and a ratio of two such numbers would be noise.

    Args:
        scores: at least two scores along ``axis``.
        axis: the axis that the runs lie on.

    Returns:
        The standard deviations, with ``axis`` removed.
    """
    return np.where(np.ptp(scores, axis=axis) == 0, 0.0, np.std(scores, axis=axis, ddof=1))


def describe(scores: ArrayLike) -> Description:
    """Describe the scores of one cell.

    Args:
        scores: the scores of the runs, shape ``[n]``; it may be empty, as where every run of a cell failed.

    Returns:
        The description.

    Raises:
        DataError: if a score is NaN, infinite or no number. A diverged run has no score: whether it is left out or
            counted with some score is the caller's decision.

    Example:
        >>> cell = describe([0.5, 0.7, 0.7, 0.8])
        >>> cell.n, round(cell.mean, 3), round(cell.std, 3), cell.interquartile_mean
        (4, 0.675, 0.126, 0.7)
    """
    values = numbers(scores, "scores")
    if not values.size:
        nan = float("nan")
        return Description(n=0, mean=nan, std=nan, min=nan, median=nan, max=nan, interquartile_mean=nan)
    return Description(
        n=values.size,
        mean=float(np.mean(values)),
        std=float(sample_std(values)) if values.size > 1 else float("nan"),
        min=float(values.min()),
        median=float(np.median(values)),
        max=float(values.max()),
        interquartile_mean=float(stats.trim_mean(values, 0.25)),
    )
