"""Two methods over the same seeds, pair by pair."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from evenkeel.errors import DataError
from evenkeel.stats._bootstrap import NUMBERS_AT_ONCE, percentile_interval, std_ratio
from evenkeel.stats._inputs import flat, generator, numbers, share, whole

_NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """The scores of ``a`` against those of ``b`` with the same seeds; what the pairs are too few for is NaN.

    Attributes:
        n: the number of pairs.
        confidence: the nominal level of the intervals.
        difference: mean of the differences a - b, in units of the score; needs one pair.
        difference_interval: bootstrap interval of it; needs two pairs.
        probability_of_improvement: the share of pairs in which a is above b, equal pairs counting half; needs one.
        std_ratio: sample standard deviation of ``a`` over that of ``b``, below 1 where ``a`` is steadier; 0 or infinite
            where only one of them is constant, 1 where both are. Needs two pairs.
        std_ratio_interval: bootstrap interval of the ratio; needs two pairs.
        spread_p: p value of equal spreads; needs three pairs.
    """

    n: int
    confidence: float
    difference: float
    difference_interval: tuple[float, float]
    probability_of_improvement: float
    std_ratio: float
    std_ratio_interval: tuple[float, float]
    spread_p: float


def compare_paired(
    a: ArrayLike,
    b: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int | np.random.Generator = 0,
) -> PairedComparison:
    r"""Compare the scores of two methods that were run with the same seeds, in mean and in spread.

    A seed that draws an unlucky head is unlucky for both methods; what they share cancels out of the differences.
    Intervals are percentiles of a bootstrap that resamples pairs, expanded for few of them as those of :func:`compare`
    are.

    Spreads are compared by the Brown-Forsythe test for pairs: with :math:`z = |x - \operatorname{median}(x)|` of each
    method, a t test of the differences :math:`z_a - z_b`. Where these do not vary there is no denominator: p is then 1
    if they are 0, else NaN.

    Args:
        a: scores of the one method, shape ``[n]``; it may be empty.
        b: scores of the other with the same seeds, in the same order, shape ``[n]``.
        confidence: the level of the intervals, between 0 and 1.
        resamples: how many bootstrap resamples.
        seed: a seed or a generator for them.

    Returns:
        The comparison.

    Raises:
        DataError: if there are not as many scores of each, a score is NaN, infinite or no number, ``confidence`` does
            not lie between 0 and 1, ``resamples`` is below 1 or ``seed`` negative.

    Source: Grambsch 1994, Biometrics 50, 1003-1014 (tests of scale in pairs); Agarwal et al. 2021, arXiv 2108.13264
    (probability of improvement).

    Example:
        >>> steady, shaky = [0.70, 0.71, 0.72, 0.71], [0.70, 0.55, 0.74, 0.57]
        >>> result = compare_paired(steady, shaky)
        >>> result.n, round(result.difference, 3), result.probability_of_improvement, round(result.std_ratio, 3)
        (4, 0.07, 0.625, 0.087)
    """
    left, right = numbers(a, "a"), numbers(b, "b")
    _in_pairs(left, right)
    level = share(confidence, "confidence")
    resamples = whole(resamples, "resamples", at_least=1)
    rng, n = generator(seed), left.size
    intervals = [(_NAN, _NAN)] * 2
    if n > 1:
        intervals = [percentile_interval(drawn, level, n) for drawn in _resampled(left, right, resamples, rng)]
    return PairedComparison(
        n=n,
        confidence=level,
        difference=float(np.mean(left - right)) if n else _NAN,
        difference_interval=intervals[0],
        probability_of_improvement=float((1 + np.sign(left - right).mean()) / 2) if n else _NAN,
        std_ratio=float(std_ratio(left, right)) if n > 1 else _NAN,
        std_ratio_interval=intervals[1],
        spread_p=_spread_p(left, right) if n > 2 else _NAN,
    )


def compare_paired_failures(failed_a: ArrayLike, failed_b: ArrayLike) -> float:
    r"""Return McNemar's exact two-sided p value that two methods fail equally often with the same seeds.

    Seeds with which both methods fail, or neither, tell nothing. Of the :math:`m` others, as many as chance has it fail
    by the one: the number is binomial with :math:`(m, 1/2)`.

    Args:
        failed_a: whether each run of the one method failed, shape ``[n]``; it may be empty.
        failed_b: the same of the other method, with the same seeds in the same order.

    Returns:
        The p value; 1 where no seed tells.

    Raises:
        DataError: if there are not as many of each, or they are no truth values.

    Source: McNemar 1947, Psychometrika 12, 153-157; the exact form.

    Example:
        >>> compare_paired_failures([True] * 6 + [False], [False] * 6 + [False])
        0.03125
    """
    left, right = _truths(failed_a, "failed_a"), _truths(failed_b, "failed_b")
    _in_pairs(left, right)
    only_a, only_b = int(np.count_nonzero(left & ~right)), int(np.count_nonzero(right & ~left))
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b).pvalue)


def _in_pairs(a: NDArray[np.generic], b: NDArray[np.generic]) -> None:
    if a.size != b.size:
        raise DataError(
            f"pairs need as many of each, but there are {a.size} and {b.size}; pass the runs whose seeds both have, in "
            "the same order"
        )


def _truths(values: ArrayLike, name: str) -> NDArray[np.bool_]:
    array = flat(values, name)
    if array.size and array.dtype.kind != "b":
        raise DataError(f"{name} must be truth values, but they are of type {array.dtype}; pass whether each failed")
    return array.astype(bool)


def _resampled(
    a: NDArray[np.float64], b: NDArray[np.float64], resamples: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean difference and the ratio of standard deviations of resampled pairs, shape ``[resamples]``."""
    at_once = max(1, NUMBERS_AT_ONCE // a.size)
    differences, ratios = [], []
    for start in range(0, resamples, at_once):
        chosen = rng.integers(0, a.size, size=(min(at_once, resamples - start), a.size))
        differences.append((a - b)[chosen].mean(axis=1))
        ratios.append(std_ratio(a[chosen], b[chosen]))
    return np.concatenate(differences), np.concatenate(ratios)


def _spread_p(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    apart = np.abs(a - np.median(a)) - np.abs(b - np.median(b))
    rounding = 8 * np.finfo(np.float64).eps * max(np.abs(a).max(), np.abs(b).max())
    if np.ptp(apart) <= rounding:
        return 1.0 if abs(apart[0]) <= rounding else _NAN
    return float(stats.ttest_1samp(apart, 0.0).pvalue)
