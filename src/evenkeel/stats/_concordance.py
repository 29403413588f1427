"""Whether the same things come in the same order again and again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from evenkeel.stats._inputs import table

__all__ = ["Concordance", "concordance"]

_NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class Concordance:
    """How far repetitions order the same things alike.

    Attributes:
        repetitions: the number of rows.
        things: the number of columns.
        w: Kendall's coefficient of concordance: 0 where orders have nothing in common, 1 where all are the same; NaN
            where there are too few rows or columns.
        p: Friedman's p value that orders are drawn by chance; NaN likewise.
    """

    repetitions: int
    things: int
    w: float
    p: float


def concordance(values: ArrayLike) -> Concordance:
    r"""Return how far the columns of a table are ordered alike in all of its rows.

    .. math::

        W = \frac{\chi^2_F}{m (k - 1)}

    with Friedman's statistic :math:`\chi^2_F` of m rows and k columns, ties counting as their mean rank.

    Args:
        values: a value of each thing in each repetition, all finite; shape ``[m, k]``.

    Returns:
        The coefficient, and the p value of Friedman's test. It takes two repetitions of three things, and values that
        differ within a row.

    Raises:
        DataError: if ``values`` is no table of finite numbers.

    Source: Friedman 1937, Journal of the American Statistical Association 32, 675-701; Kendall & Babington Smith 1939,
    The Annals of Mathematical Statistics 10, 275-287.

    Example:
        >>> found = concordance([[0.1, 0.3, 0.8], [0.2, 0.3, 0.4], [0.0, 0.5, 0.9]])
        >>> found.w, round(found.p, 3)
        (1.0, 0.05)
    """
    rows = table(values)
    m, k = rows.shape
    if m < 2 or k < 3 or (np.ptp(rows, axis=1) == 0).all():
        return Concordance(repetitions=m, things=k, w=_NAN, p=_NAN)
    statistic, p = stats.friedmanchisquare(*rows.T)
    return Concordance(repetitions=m, things=k, w=float(statistic / (m * (k - 1))), p=float(p))
