"""Whether a number rises or falls with a setting, over repetitions at all of its values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from evenkeel.stats._inputs import table
from evenkeel.stats._sign_flip import sign_flip_p

__all__ = ["Trend", "trend"]

_NAN = float("nan")
_FEWEST = 5  # rows; with fewer even one sign all along is more likely than 5 % by chance


@dataclass(frozen=True, kw_only=True)
class Trend:
    """How far values rise from column to column, in every row on its own.

    Attributes:
        correlations: Spearman's rank correlation of each row's values with the order of the columns, shape ``[m]``; 0
            of a row whose values are all the same.
        p: the p value, of both sides, that a row rises as readily as it falls; NaN where there are too few.
    """

    correlations: tuple[float, ...]
    p: float


def trend(values: ArrayLike) -> Trend:
    """Return how values rise with the columns of a table, whose rows are repetitions.

    Rows are what is independent; within one, settings that are close may give much the same. So each row tells one
    number, and it is signs of these that are drawn (:func:`sign_flip_p`), where Page's test of ordered alternatives
    would take the values of a row for independent, and find too much.

    Args:
        values: a value of each repetition at each setting, settings in order, all finite; shape ``[m, k]``.

    Returns:
        The correlations and the p value. It takes five repetitions at three settings.

    Raises:
        DataError: if ``values`` is no table of finite numbers.

    Example:
        >>> rows = [[0.1, 0.3, 0.8, 0.9], [0.2, 0.3, 0.4, 0.5], [0.0, 0.5, 0.4, 0.9]]
        >>> found = trend(rows + rows)
        >>> [round(one, 1) for one in found.correlations[:3]], round(found.p, 2)
        ([1.0, 1.0, 0.8], 0.03)
    """
    rows = table(values)
    m, k = rows.shape
    if k < 3:
        return Trend(correlations=(_NAN,) * m, p=_NAN)
    ranks = stats.rankdata(rows, axis=1) - (k + 1) / 2
    order = np.arange(k) - (k - 1) / 2
    scale = np.sqrt((ranks**2).sum(axis=1) * (order**2).sum())
    correlations = np.divide(ranks @ order, scale, out=np.zeros(m), where=scale > 0)
    p = min(1.0, 2 * min(map(sign_flip_p, (correlations, -correlations)))) if m >= _FEWEST else _NAN
    return Trend(correlations=tuple(map(float, correlations)), p=p)
