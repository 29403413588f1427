"""How far a share that was seen in few runs can be trusted."""

from __future__ import annotations

from scipy import stats

from evenkeel.errors import DataError
from evenkeel.stats._inputs import share, whole


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    r"""Return Wilson's score interval for a proportion, such as the share of failed runs.

    It holds every :math:`p` that a score test does not reject, given :math:`\hat p` = ``successes / n``:

    .. math::

        (\hat p - p)^2 \le z^2 \, p (1 - p) / n

    with :math:`z` the normal quantile of ``(1 + confidence) / 2``. Unlike Wald's it never leaves [0, 1] and has a width
    at 0 and ``n`` successes.

    Args:
        successes: how often it happened, from 0 to ``n``.
        n: the number of trials; with none, the interval is all of [0, 1].
        confidence: the share of such intervals that hold the true proportion, approximately; between 0 and 1.

    Returns:
        The lower and the upper end.

    Raises:
        DataError: if ``successes`` or ``n`` is no whole number, negative, or ``successes`` exceeds ``n``; if
            ``confidence`` does not lie between 0 and 1.

    Source: Wilson 1927, Journal of the American Statistical Association 22, 209-212.

    Example:
        >>> low, high = wilson(0, 10)
        >>> round(low, 4), round(high, 4)
        (0.0, 0.2775)
    """
    n = whole(n, "n", at_least=0)
    successes = whole(successes, "successes", at_least=0)
    if successes > n:
        raise DataError(f"successes cannot exceed n, but got {successes} of {n}; pass the smaller number first")
    level = share(confidence, "confidence")
    if n == 0:
        return 0.0, 1.0
    interval = stats.binomtest(successes, n).proportion_ci(confidence_level=level, method="wilson")
    return float(interval.low), float(interval.high)
