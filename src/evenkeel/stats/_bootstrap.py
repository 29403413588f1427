"""What comparisons by the bootstrap share: the ratio of spreads, and percentiles of what was drawn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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


def percentile_interval(drawn: _Scores, confidence: float) -> tuple[float, float]:
    """Return the percentile interval of a bootstrap distribution.

    Args:
        drawn: the statistic of each resample, at least one.
        confidence: the level.

    Returns:
        An observed value at either end, never a mean of two: infinite ratios stay infinite and do not become NaN.
    """
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], method="inverted_cdf")
    return float(low), float(high)
