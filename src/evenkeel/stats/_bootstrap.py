"""What comparisons by the bootstrap share: the ratio of spreads, and percentiles of what was drawn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from evenkeel.stats._describe import sample_std

NUMBERS_AT_ONCE = 2**22  # 32 MiB of resampled scores
_Scores = NDArray[np.float64]


def std_ratio(a: _Scores, b: _Scores, axis: int = -1) -> _Scores:
    """Return the ratio of the standard deviations along ``axis``.

    Args:
        a: at least two scores along ``axis``.
        b: likewise.
        axis: the axis that the runs lie on.

    Returns:
        The ratios; 1 where both are 0, infinite where only b's is.
    """
    above, below = sample_std(a, axis), sample_std(b, axis)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((above == 0) & (below == 0), 1.0, above / below)


def percentile_interval(drawn: _Scores, confidence: float, n: int) -> tuple[float, float]:
    r"""Return the expanded percentile interval of a bootstrap distribution.

    A plain percentile interval is too narrow for few runs: a resample varies by :math:`\sqrt{(n - 1)/n}` less than a
    sample does, and knows nothing of the tails of Student's t. So the share that is cut off at either end is

    .. math::

        \Phi\left(\sqrt{n/(n-1)} \; t_{\alpha/2,\, n-1}\right)

    in place of :math:`\alpha/2`; for normal scores and their mean that is the interval of a t test.

    Args:
        drawn: the statistic of each resample, at least one.
        confidence: the level.
        n: how many runs were resampled, at least two; of two groups the smaller one's.

    Returns:
        An observed value at either end, never a mean of two: infinite ratios stay infinite and do not become NaN.

    Source: Hesterberg 2015, The American Statistician 69, 371-386 (expanded percentiles).
    """
    tail = float(stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf((1 - confidence) / 2, n - 1)))
    low, high = np.quantile(drawn, [tail, 1 - tail], method="inverted_cdf")
    return float(low), float(high)
