"""How many runs it would take to see what these few suggest."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from evenkeel.errors import DataError
from evenkeel.stats._inputs import generator, numbers, share, whole

_Values = NDArray[np.float64]
_Test = Callable[[_Values, _Values], _Values]  # two samples, shape [B, n] each; p values, shape [B]

_DRAWS = 1000  # samples of a size; the power that they give is known to about 0.013
_FEWEST = 3


def runs_needed(
    a: ArrayLike,
    b: ArrayLike,
    of: Literal["mean", "spread", "failures"],
    *,
    paired: bool = False,
    alpha: float = 0.05,
    power: float = 0.8,
    most: int = 1000,
    seed: int | np.random.Generator = 0,
) -> int | None:
    """Estimate how many runs of each of two methods show that they differ as much as these do.

    Samples of a size are drawn with replacement from the values given, and tested; the answer is the smallest size of
    which the test rejects in a share ``power`` of the samples. So the difference that was seen is taken for the true
    one; from few runs, and where one looks because it is large, that is too large, and the answer too small.

    The tests: of means Welch's t test, or in pairs that of the differences; of spreads the Brown-Forsythe test, or in
    pairs the same of the differences of distances from the medians; of failures Fisher's exact test, or in pairs
    McNemar's.

    Args:
        a: scores of the one method, shape ``[n_a]``; for ``"failures"``, 1 for each run that failed, 0 for the others.
        b: the same of the other method; in pairs, with the same seeds in the same order.
        of: what is compared.
        paired: whether the seeds are the same.
        alpha: the level of the test.
        power: the share of studies that are to find it, between 0 and 1.
        most: give up above so many runs.
        seed: a seed or a generator for the samples.

    Returns:
        The number of runs of each method; None where even ``most`` are not enough, as where there is no difference.

    Raises:
        DataError: if a value is NaN, infinite or no number, there are fewer than two of each, not as many of each in
            pairs, or a parameter is out of range.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, section 25.4 (power from resampled data).

    Example:
        >>> steady, shaky = [0.70, 0.71, 0.72, 0.71, 0.70], [0.70, 0.55, 0.74, 0.57, 0.72]
        >>> runs_needed(steady, shaky, "spread")
        11
    """
    left, right = numbers(a, "a"), numbers(b, "b")
    if min(left.size, right.size) < 2:
        raise DataError(f"there must be two values of each method, but there are {left.size} and {right.size}")
    if paired and left.size != right.size:
        raise DataError(f"pairs need as many of each, but there are {left.size} and {right.size}")
    level, wanted = share(alpha, "alpha"), share(power, "power")
    most, rng = whole(most, "most", at_least=_FEWEST), generator(seed)
    if of not in _TESTS:
        raise DataError(f"of must be one of {', '.join(_TESTS)}, but got {of!r}")
    test = _TESTS[of][paired]

    def enough(n: int) -> bool:
        rows = rng.integers(0, left.size, size=(_DRAWS, n))
        columns = rows if paired else rng.integers(0, right.size, size=(_DRAWS, n))
        return bool(np.mean(test(left[rows], right[columns]) <= level) >= wanted)

    return _smallest(enough, most)


def _smallest(enough: Callable[[int], bool], most: int) -> int | None:
    """Return the smallest size that is enough: doubled until it is, then halved in between."""
    low, high = _FEWEST - 1, _FEWEST
    while not enough(high):
        if high == most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _welch(a: _Values, b: _Values) -> _Values:
    return _p_values(partial(stats.ttest_ind, equal_var=False), a, b)


def _paired_t(a: _Values, b: _Values) -> _Values:
    return _p_values(stats.ttest_rel, a, b)


def _brown_forsythe(a: _Values, b: _Values) -> _Values:
    return _p_values(stats.ttest_ind, _off(a), _off(b))  # of two groups F is the square of t


def _paired_brown_forsythe(a: _Values, b: _Values) -> _Values:
    return _paired_t(_off(a), _off(b))


def _off(values: _Values) -> _Values:
    return np.abs(values - np.median(values, axis=1, keepdims=True))


def _p_values(test: Callable[..., Any], a: _Values, b: _Values) -> _Values:
    """Return p values; 1 where neither sample varies: such a sample shows nothing."""
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # of samples that do not vary, which are drawn now and then
        found = test(a, b, axis=1)
    return np.where(np.isfinite(found.statistic), found.pvalue, 1.0)


def _fisher(a: _Values, b: _Values) -> _Values:
    n = a.shape[1], b.shape[1]
    counts = np.stack([a.sum(axis=1), b.sum(axis=1)], axis=1).astype(int)
    tables, place = np.unique(counts, axis=0, return_inverse=True)
    p = [stats.fisher_exact([[x, n[0] - x], [y, n[1] - y]]).pvalue for x, y in tables]
    return np.asarray(p)[place.ravel()]


def _mcnemar(a: _Values, b: _Values) -> _Values:
    only_a, only_b = ((a > b).sum(axis=1), (b > a).sum(axis=1))
    fewer = np.minimum(only_a, only_b)
    return np.asarray(np.minimum(1.0, 2 * stats.binom.cdf(fewer, only_a + only_b, 0.5)))


_TESTS: dict[str, tuple[_Test, _Test]] = {  # of independent runs, of pairs
    "mean": (_welch, _paired_t),
    "spread": (_brown_forsythe, _paired_brown_forsythe),
    "failures": (_fisher, _mcnemar),
}
