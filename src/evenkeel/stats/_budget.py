"""What the best of a few runs may be expected to score."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evenkeel.stats._inputs import numbers


def expected_maximum(scores: ArrayLike) -> NDArray[np.float64]:
    r"""Return the expected best score of n runs, for every budget n from 1 to the number of scores N.

    The n runs are drawn with replacement from the N scores, sorted :math:`v_{(1)} \le \dots \le v_{(N)}`:

    .. math::

        E[\max\nolimits_n] = \sum_{i=1}^N v_{(i)} \left[ (i/N)^n - ((i-1)/N)^n \right]
                           = v_{(N)} - \sum_{i=1}^{N-1} (i/N)^n \, (v_{(i+1)} - v_{(i)})

    The second form is the one computed: its terms are never negative, so that equal scores give exactly that score. The
    curve starts at the mean, never falls, and ends below the maximum unless all scores are equal: N draws with
    replacement may miss the best one.

    Args:
        scores: the scores of the runs, higher is better, shape ``[N]``; it may be empty.

    Returns:
        The expected maximum of ``1, ..., N`` runs in the units of the score, shape ``[N]``.

    Raises:
        DataError: if a score is NaN, infinite or no number.

    Source: Dodge et al. 2019, "Show Your Work", arXiv 1909.03004.

    Example:
        >>> expected_maximum([0.75, 0.25]).tolist()
        [0.5, 0.625]
    """
    ordered = np.sort(numbers(scores, "scores"))
    n = ordered.size
    if n == 0:
        return ordered
    below = np.arange(1, n) / n  # [N - 1], the share of scores up to the i-th
    budgets = np.arange(1, n + 1)[:, np.newaxis]  # [N, 1]
    shortfall = (below**budgets * np.diff(ordered)).sum(axis=1)
    return np.asarray(ordered[-1] - shortfall, dtype=np.float64)
