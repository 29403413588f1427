"""Numbers of runs, against the textbook's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from evenkeel.errors import DataError
from evenkeel.stats import _power, runs_needed


def quantiles(n: int, mean: float, std: float) -> np.ndarray:
    """Return normal scores without luck."""
    scores = stats.norm.ppf((np.arange(n) + 0.5) / n)
    return mean + std * (scores - scores.mean()) / scores.std()


def test_means_take_what_the_t_test_takes() -> None:
    # Cohen 1988, table 2.4.1: d = .8 at alpha .05 and power .80 takes 26 of each; d = .5 takes 64.
    for d, n in ((0.8, 26), (0.5, 64)):
        assert runs_needed(quantiles(200, d, 1), quantiles(200, 0, 1), "mean") == pytest.approx(n, rel=0.12)


def test_a_standard_deviation_halved_takes_about_thirty() -> None:
    needed = runs_needed(quantiles(200, 0, 1), quantiles(200, 0, 2), "spread")
    assert needed == pytest.approx(28, abs=6)


def test_failures_take_what_fishers_test_takes() -> None:
    few, many = np.repeat([1, 0], [10, 90]), np.repeat([1, 0], [40, 60])
    needed = runs_needed(few, many, "failures")
    assert needed is not None
    rejected = sum(
        stats.binom.pmf(x, needed, 0.1) * stats.binom.pmf(y, needed, 0.4)
        for x in range(needed + 1)
        for y in range(needed + 1)
        if stats.fisher_exact([[x, needed - x], [y, needed - y]]).pvalue <= 0.05
    )
    assert rejected == pytest.approx(0.8, abs=0.05)


def test_pairs_that_share_their_luck_take_fewer() -> None:
    luck = np.random.default_rng(0).permutation(quantiles(100, 0, 2))
    a, b = luck + quantiles(100, 0.5, 0.5), luck
    paired, apart = runs_needed(a, b, "mean", paired=True), runs_needed(a, b, "mean")
    assert paired is not None
    assert apart is not None
    assert paired < 15 < 150 < apart


@pytest.mark.parametrize("of", ["mean", "spread", "failures"])
@pytest.mark.parametrize("paired", [False, True])
def test_where_nothing_differs_no_number_is_enough(of: str, paired: bool) -> None:
    values = np.tile([0.0, 1.0], 10)
    assert runs_needed(values, values, of, paired=paired, most=50) is None  # type: ignore[arg-type]
    assert runs_needed([1.0] * 5, [1.0] * 5, of, paired=paired, most=20) is None  # type: ignore[arg-type]


def test_the_tests_are_those_of_scipy() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(5, 9)), rng.normal(0.5, 2, size=(5, 9))
    theirs = {
        "mean": [
            [stats.ttest_ind(x, y, equal_var=False).pvalue for x, y in zip(a, b, strict=True)],
            [stats.ttest_rel(x, y).pvalue for x, y in zip(a, b, strict=True)],
        ],
        "spread": [
            [stats.levene(x, y, center="median").pvalue for x, y in zip(a, b, strict=True)],
            [
                stats.ttest_rel(np.abs(x - np.median(x)), np.abs(y - np.median(y))).pvalue
                for x, y in zip(a, b, strict=True)
            ],
        ],
    }
    for of, expected in theirs.items():
        for test, p in zip(_power._TESTS[of], expected, strict=True):
            assert test(a, b) == pytest.approx(p)
    x, y = (a > 0).astype(float), (b > 0).astype(float)
    table = [[int(((x[0] > 0) & (y[0] == 0)).sum()), int(((x[0] == 0) & (y[0] > 0)).sum())]]
    assert _power._mcnemar(x, y)[0] == pytest.approx(stats.binomtest(table[0][0], sum(table[0])).pvalue)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(DataError, match="there must be two values of each method, but there are 1 and 2"):
        runs_needed([1.0], [1.0, 2.0], "mean")
    with pytest.raises(DataError, match="pairs need as many of each"):
        runs_needed([1.0, 2.0, 3.0], [1.0, 2.0], "mean", paired=True)
    with pytest.raises(DataError, match="of must be one of mean, spread, failures, but got 'median'"):
        runs_needed([1.0, 2.0], [1.0, 2.0], "median")  # type: ignore[arg-type]
