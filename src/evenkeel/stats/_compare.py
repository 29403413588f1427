"""Two cells of a study side by side: which is better, which is steadier, which fails less."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from evenkeel.errors import DataError
from evenkeel.stats._bootstrap import NUMBERS_AT_ONCE, percentile_interval, std_ratio
from evenkeel.stats._inputs import generator, numbers, real, share, whole

_Scores = NDArray[np.float64]
_NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The scores of ``a`` against those of ``b``; a field that the scores are too few for is NaN.

    Attributes:
        n_a: the number of scores of ``a``.
        n_b: the number of scores of ``b``.
        confidence: the nominal level of the intervals.
        difference: mean of ``a`` minus mean of ``b``, in units of the score; needs one score each.
        difference_interval: bootstrap interval of the difference; needs two scores each.
        probability_of_improvement: P(A > B) + P(A = B) / 2 for one run of each; needs one score each.
        std_ratio: sample standard deviation of ``a`` over that of ``b``, below 1 where ``a`` is steadier; 0 or infinite
            where only one of them is constant, 1 where both are. Needs two scores each.
        std_ratio_interval: bootstrap interval of the ratio; needs two scores each.
        brown_forsythe_p: p value of equal variances; needs two scores each, and three in one group.
    """

    n_a: int
    n_b: int
    confidence: float
    difference: float
    difference_interval: tuple[float, float]
    probability_of_improvement: float
    std_ratio: float
    std_ratio_interval: tuple[float, float]
    brown_forsythe_p: float


def compare(
    a: ArrayLike,
    b: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int | np.random.Generator = 0,
) -> Comparison:
    """Compare the scores of two methods over independent runs, in mean and in spread.

    Intervals are percentiles of a bootstrap that resamples each group on its own. Percentiles, because they mean the
    same for a ratio as for its logarithm and survive resamples without any spread, where BCa's jackknife divides by
    zero; expanded for few runs (Hesterberg 2015). At 10 runs each, with normal scores, 95 % hold the true difference as
    they should, at 5 about 93 %. Where a group has no spread they close up on the estimate and claim too much.

    The Brown-Forsythe test is Levene's with deviations from the medians. Where these deviations do not vary within
    either group it has no denominator: p is then 1 if they are equal in both groups too, else NaN.

    Args:
        a: scores of the one method, shape ``[n_a]``; it may be empty.
        b: scores of the other, shape ``[n_b]``; it may be empty.
        confidence: the level of the intervals, between 0 and 1.
        resamples: how many bootstrap resamples.
        seed: a seed or a generator for them.

    Returns:
        The comparison.

    Raises:
        DataError: if a score is NaN, infinite or no number, ``confidence`` does not lie between 0 and 1, ``resamples``
            is below 1 or ``seed`` negative.

    Source: Agarwal et al. 2021, arXiv 2108.13264 (stratified bootstrap, probability of improvement); Hesterberg 2015,
    The American Statistician 69, 371-386 (expanded percentiles); Brown & Forsythe 1974, Journal of the American
    Statistical Association 69, 364-367.

    Example:
        >>> steady, shaky = [0.70, 0.71, 0.72, 0.71], [0.70, 0.55, 0.74, 0.57]
        >>> result = compare(steady, shaky)
        >>> round(result.difference, 3), round(result.probability_of_improvement, 3), round(result.std_ratio, 3)
        (0.07, 0.719, 0.087)
    """
    left, right = numbers(a, "a"), numbers(b, "b")
    level = share(confidence, "confidence")
    resamples = whole(resamples, "resamples", at_least=1)
    rng = generator(seed)
    fewest = min(left.size, right.size)
    return Comparison(
        n_a=left.size,
        n_b=right.size,
        confidence=level,
        difference=float(_mean_difference(left, right)) if fewest else _NAN,
        difference_interval=_interval(left, right, _mean_difference, level, resamples, rng),
        probability_of_improvement=_improvement(left, right) if fewest else _NAN,
        std_ratio=float(std_ratio(left, right)) if fewest > 1 else _NAN,
        std_ratio_interval=_interval(left, right, std_ratio, level, resamples, rng),
        brown_forsythe_p=_brown_forsythe(left, right),
    )


def compare_failures(failed_a: int, n_a: int, failed_b: int, n_b: int) -> float:
    """Return Fisher's exact two-sided p value that two methods fail equally often.

    Args:
        failed_a: failed runs of the one method, from 0 to ``n_a``.
        n_a: all its runs; none at all are no evidence, p = 1.
        failed_b: failed runs of the other method, from 0 to ``n_b``.
        n_b: all its runs.

    Returns:
        The p value.

    Raises:
        DataError: if a count is no whole number, negative, or more runs failed than there are.

    Example:
        >>> round(compare_failures(10, 20, 2, 20), 4)
        0.0138
    """
    rows = []
    for bad, n, name in ((failed_a, n_a, "a"), (failed_b, n_b, "b")):
        bad, n = whole(bad, f"failed_{name}", at_least=0), whole(n, f"n_{name}", at_least=0)
        if bad > n:
            raise DataError(
                f"failed_{name} cannot exceed n_{name}, but got {bad} of {n}; pass failed_a, n_a, failed_b, n_b"
            )
        rows.append([bad, n - bad])
    return float(stats.fisher_exact(rows).pvalue)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    r"""Adjust p values for their number by Holm's method.

    With m values sorted, :math:`p_{(1)} \le \dots \le p_{(m)}`:

    .. math::

        \tilde p_{(i)} = \max_{j \le i} \min(1, (m - j + 1) \, p_{(j)})

    Whoever rejects where the adjusted p is at most alpha makes any false rejection at all with probability alpha at
    most, however the tests depend on each other.

    Args:
        p_values: the p values, shape ``[m]``; NaN stands for a test that could not be made, does not count towards m,
            and stays NaN.

    Returns:
        The adjusted p values, in the order given.

    Raises:
        DataError: if a value is no number, below 0 or above 1, or the values are not flat.

    Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.

    Example:
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]
    """
    given = real(p_values, "p_values")
    made = ~np.isnan(given)
    p = given[made]
    outside = p[(p < 0) | (p > 1)]
    if outside.size:
        raise DataError(
            f"p_values must lie between 0 and 1, but one of them is {outside[0]}; pass probabilities, or NaN for none"
        )
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1, np.arange(p.size, 0, -1) * p[order])
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(stepped)
    result = np.full(given.shape, np.nan)
    result[made] = adjusted
    return result


def _mean_difference(a: _Scores, b: _Scores, axis: int = -1) -> _Scores:
    """Return the difference of the means along ``axis``."""
    return np.asarray(np.mean(a, axis=axis) - np.mean(b, axis=axis))


def _improvement(a: _Scores, b: _Scores) -> float:
    """Return the share of pairs in which a is above b, equal pairs counting half."""
    return float((1 + np.sign(a[:, np.newaxis] - b).mean()) / 2)


def _interval(
    a: _Scores,
    b: _Scores,
    statistic: Callable[..., _Scores],
    confidence: float,
    resamples: int,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Return the expanded percentile interval of a statistic of both groups."""
    if min(a.size, b.size) < 2:
        return _NAN, _NAN
    with np.errstate(invalid="ignore"):  # SciPy's own interval interpolates between infinite ratios; it is not used
        drawn = stats.bootstrap(
            (a, b),
            statistic,
            n_resamples=resamples,
            batch=max(1, NUMBERS_AT_ONCE // max(a.size, b.size)),
            vectorized=True,
            axis=-1,
            method="percentile",
            rng=rng,
        ).bootstrap_distribution
    return percentile_interval(drawn, confidence, min(a.size, b.size))


def _brown_forsythe(a: _Scores, b: _Scores) -> float:
    """Return the p value of equal variances, NaN where the test has no denominator."""
    if min(a.size, b.size) < 2 or max(a.size, b.size) < 3:  # two scores always lie equally far from their median
        return _NAN
    off_a, off_b = np.abs(a - np.median(a)), np.abs(b - np.median(b))
    rounding = 8 * np.finfo(np.float64).eps * max(np.abs(a).max(), np.abs(b).max())
    if max(np.ptp(off_a), np.ptp(off_b)) <= rounding:
        return 1.0 if abs(np.mean(off_a) - np.mean(off_b)) <= rounding else _NAN
    with np.errstate(divide="ignore", invalid="ignore"):  # squares of deviations below 1e-160 vanish
        return float(stats.levene(a, b, center="median").pvalue)
