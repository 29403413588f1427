"""Pairs, against SciPy and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tests.stats._expanded import cut_off

from evenkeel.errors import DataError
from evenkeel.stats import compare_paired, compare_paired_failures

SCORES = st.lists(st.floats(0, 1).map(lambda x: round(x, 3)), min_size=3, max_size=12)


@given(st.integers(3, 12), st.integers(0, 2**32 - 1))
def test_the_numbers_are_those_of_scipy(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=n), rng.normal(size=n)
    found = compare_paired(a, b, resamples=99)
    assert found.n == n
    assert found.difference == pytest.approx(np.mean(a - b))
    assert found.probability_of_improvement == pytest.approx(np.mean(a > b))
    assert found.std_ratio == pytest.approx(np.std(a, ddof=1) / np.std(b, ddof=1))
    off = np.abs(a - np.median(a)), np.abs(b - np.median(b))
    assert found.spread_p == pytest.approx(stats.ttest_rel(*off).pvalue)


def test_the_interval_is_that_of_scipys_bootstrap() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.1, 1, 40), rng.normal(size=40)
    found = compare_paired(a, b)
    theirs = stats.bootstrap(
        (a - b,),
        np.mean,
        method="percentile",
        confidence_level=1 - 2 * cut_off(0.95, n=40),
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found.difference_interval == pytest.approx(tuple(theirs), abs=0.02)
    ratio = stats.bootstrap(
        (a, b), lambda x, y, axis: np.std(x, axis=axis, ddof=1) / np.std(y, axis=axis, ddof=1),
        paired=True, method="percentile", rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert found.std_ratio_interval == pytest.approx(ratio, abs=0.03)


def test_what_both_share_cancels() -> None:
    luck = np.random.default_rng(2).normal(0, 10, 20)
    noise = np.random.default_rng(3).normal(0, 0.1, 20)
    low, high = compare_paired(luck + 1 + noise, luck).difference_interval
    assert 0.9 < low < high < 1.1


@given(SCORES)
def test_a_method_against_itself_shows_nothing(scores: list[float]) -> None:
    found = compare_paired(scores, scores, resamples=20)
    assert (found.difference, found.difference_interval) == (0, (0, 0))
    assert (found.probability_of_improvement, found.std_ratio, found.spread_p) == (0.5, 1, 1)


def test_few_pairs_give_what_they_can() -> None:
    nothing, one, two = compare_paired([], []), compare_paired([1.0], [0.5]), compare_paired([1.0, 2.0], [0.0, 4.0])
    assert (nothing.n, math.isnan(nothing.difference)) == (0, True)
    assert (one.difference, one.probability_of_improvement, math.isnan(one.std_ratio)) == (0.5, 1, True)
    assert (two.std_ratio, math.isnan(two.spread_p)) == (0.25, True)
    constant = compare_paired([1.0, 1.0, 1.0], [0.0, 1.0, 2.0])
    assert (constant.std_ratio, compare_paired([0.0, 1.0, 2.0], [1.0] * 3).std_ratio) == (0, math.inf)


def test_pairs_that_are_none_are_refused() -> None:
    with pytest.raises(DataError, match="pairs need as many of each, but there are 1 and 2; pass the runs whose seeds"):
        compare_paired([1.0], [1.0, 2.0])
    with pytest.raises(DataError, match="pairs need as many"):
        compare_paired_failures([True], [True, False])
    with pytest.raises(DataError, match="failed_a must be truth values, but they are of type float64"):
        compare_paired_failures([0.5], [True])


def test_mcnemars_example() -> None:
    # Agresti 2002, Categorical Data Analysis, table 10.1: 150 and 86 change their minds; the exact p is 3.7e-5.
    a = np.repeat([True, False, True, False], [150, 86, 794, 570])
    b = np.repeat([False, True, True, False], [150, 86, 794, 570])
    assert compare_paired_failures(a, b) == pytest.approx(3.72e-5, rel=0.02)
    assert compare_paired_failures([], []) == compare_paired_failures([True], [True]) == 1


@pytest.mark.slow
def test_the_interval_holds_the_true_difference_about_as_often_as_it_says() -> None:
    rng, held = np.random.default_rng(5), 0
    for _ in range(400):
        shared = rng.normal(size=30)
        low, high = compare_paired(shared + rng.normal(0.5, 1, 30), shared + rng.normal(0, 2, 30), resamples=999,
                                   seed=rng).difference_interval  # fmt: skip
        held += low <= 0.5 <= high
    assert 0.90 <= held / 400 <= 0.97


@pytest.mark.slow
def test_equal_spreads_are_told_apart_no_more_often_than_alpha() -> None:
    rng = np.random.default_rng(6)
    p = []
    for _ in range(2000):
        shared = rng.normal(size=20)
        p.append(compare_paired(shared + rng.normal(size=20), shared + rng.normal(size=20), resamples=1).spread_p)
    assert np.mean(np.array(p) <= 0.05) <= 0.06
