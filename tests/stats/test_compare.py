from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tests.stats._expanded import cut_off

from evenkeel.errors import DataError
from evenkeel.stats import Comparison, compare, compare_failures, compare_paired, holm

ANY = st.lists(st.floats(-100, 100), max_size=8)
GRID = st.lists(st.integers(0, 6).map(lambda k: k / 6), min_size=2, max_size=8)
P_VALUES = st.lists(st.floats(0, 1), max_size=12)
A = [0.70, 0.71, 0.72, 0.69, 0.74, 0.68, 0.70, 0.73]
B = [0.66, 0.53, 0.72, 0.53, 0.70, 0.61, 0.71, 0.55, 0.69]


def quick(a: Any, b: Any, **options: Any) -> Comparison:
    return compare(a, b, resamples=199, **options)


def test_agrees_with_scipy() -> None:
    result = compare(A, B)
    assert result.difference == pytest.approx(np.mean(A) - np.mean(B))
    assert result.std_ratio == pytest.approx(np.std(A, ddof=1) / np.std(B, ddof=1))
    pairs = stats.mannwhitneyu(A, B).statistic / (len(A) * len(B))
    assert result.probability_of_improvement == pytest.approx(pairs)
    assert result.brown_forsythe_p == pytest.approx(stats.levene(A, B, center="median").pvalue)
    theirs = stats.bootstrap(
        (A, B),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        method="percentile",
        confidence_level=1 - 2 * cut_off(0.95, n=8),
        rng=np.random.default_rng(9),
    ).confidence_interval
    assert result.difference_interval == pytest.approx(tuple(theirs), abs=0.004)


def test_intervals_against_every_resample() -> None:
    a, b = [0.0, 1.0, 3.0], [0.0, 2.0, 7.0]
    draws = [(np.array(x), np.array(y)) for x in itertools.product(a, repeat=3) for y in itertools.product(b, repeat=3)]
    differences = [x.mean() - y.mean() for x, y in draws]
    spreads = [(x.std() if np.ptp(x) else 0.0, y.std() if np.ptp(y) else 0.0) for x, y in draws]
    ratios = [1.0 if x == y == 0 else x / y if y else math.inf for x, y in spreads]
    result = compare(a, b, confidence=0.6)
    for values, interval in ((differences, result.difference_interval), (ratios, result.std_ratio_interval)):
        shares = [np.mean(np.array(values) <= end + 1e-9) for end in interval]
        below = [np.mean(np.array(values) < end - 1e-9) for end in interval]
        tail = cut_off(0.6, n=3)
        assert below[0] - 0.02 <= tail <= shares[0] + 0.02
        assert below[1] - 0.02 <= 1 - tail <= shares[1] + 0.02


def test_intervals_of_means_are_those_of_the_t_test() -> None:
    a, b = np.array([0.1, 0.5, 0.4, 0.9, 0.3, 0.8, 0.2]), np.array([0.0, 0.1, 0.5, 0.3, 0.2, 0.6, 0.4])
    theirs = stats.ttest_rel(a, b).confidence_interval(0.9)
    assert compare_paired(a, b, confidence=0.9).difference_interval == pytest.approx(tuple(theirs), abs=0.02)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng, runs = np.random.default_rng(0), 150
    held = np.zeros(2)
    for _ in range(runs):
        result = quick(rng.normal(1, 2, 30), rng.normal(0, 1, 30), seed=rng)
        ends = (result.difference_interval, 1.0), (result.std_ratio_interval, 2.0)
        held += [low <= truth <= high for (low, high), truth in ends]
    assert (held / runs > 0.88).all()
    assert (held / runs < 1).all()


@pytest.mark.slow
@pytest.mark.parametrize(("n", "least"), [(5, 0.90), (10, 0.93), (30, 0.93)])
def test_few_runs_do_not_make_intervals_too_narrow(n: int, least: float) -> None:
    rng, runs, held = np.random.default_rng(1), 1500, 0
    for _ in range(runs):
        low, high = compare_paired(rng.normal(size=n), rng.normal(size=n), resamples=999, seed=rng).difference_interval
        held += low <= 0 <= high
    assert least <= held / runs <= 0.97


def test_higher_confidence_is_wider() -> None:
    narrow, wide = quick(A, B, confidence=0.5), quick(A, B, confidence=0.99)
    for field in ("difference_interval", "std_ratio_interval"):
        inner, outer = getattr(narrow, field), getattr(wide, field)
        assert outer[0] < inner[0] < inner[1] < outer[1]
    assert (narrow.confidence, wide.confidence) == (0.5, 0.99)


def test_seeds_repeat() -> None:
    assert quick(A, B, seed=1) == quick(A, B, seed=1) == quick(A, B, seed=np.random.default_rng(1))
    assert quick(A, B, seed=1) != quick(A, B, seed=2)


@given(GRID, GRID)
@settings(max_examples=40)
def test_exchanging_the_groups_mirrors_the_estimates(a: list[float], b: list[float]) -> None:
    one, other = quick(a, b), quick(b, a)
    assert one.difference == pytest.approx(-other.difference)
    assert one.probability_of_improvement == pytest.approx(1 - other.probability_of_improvement)
    assert one.brown_forsythe_p == pytest.approx(other.brown_forsythe_p, nan_ok=True)
    if 0 < one.std_ratio < math.inf:
        assert one.std_ratio == pytest.approx(1 / other.std_ratio)


@given(ANY, ANY)
@settings(max_examples=100)
def test_any_scores_give_results_in_range_without_a_warning(a: list[float], b: list[float]) -> None:
    result = compare(a, b, resamples=19)
    fewest = min(len(a), len(b))
    assert math.isnan(result.difference) == math.isnan(result.probability_of_improvement) == (fewest < 1)
    spread = (result.std_ratio, *result.std_ratio_interval, *result.difference_interval)
    assert [math.isnan(value) for value in spread] == [fewest < 2] * 5
    if fewest > 1:
        assert 0 <= result.std_ratio_interval[0] <= result.std_ratio_interval[1]
        assert result.difference_interval[0] <= result.difference_interval[1]
    if fewest:
        assert 0 <= result.probability_of_improvement <= 1
    assert math.isnan(result.brown_forsythe_p) or 0 <= result.brown_forsythe_p <= 1


def test_single_runs_have_a_difference_and_nothing_about_spread() -> None:
    result = compare([0.8], [0.5])
    assert result.difference == pytest.approx(0.3)
    assert result.probability_of_improvement == 1
    others = dataclasses.asdict(result)
    assert np.isnan(others["difference_interval"]).all()
    assert math.isnan(others["std_ratio"])
    assert math.isnan(others["brown_forsythe_p"])


def test_groups_without_spread_have_defined_results() -> None:
    same, level, shaky = [0.1] * 3, [0.3] * 3, [0.1, 0.2, 0.6]
    both = quick(same, level)
    assert both.difference_interval == pytest.approx((-0.2, -0.2))
    assert (both.std_ratio, both.std_ratio_interval, both.brown_forsythe_p) == (1.0, (1.0, 1.0), 1.0)
    steady = quick(same, shaky)
    assert steady.std_ratio == 0
    assert steady.std_ratio_interval[0] == 0
    assert quick(shaky, same).std_ratio == math.inf
    assert quick(shaky, same).std_ratio_interval[1] == math.inf


def test_brown_forsythe_claims_nothing_where_it_has_no_denominator() -> None:
    assert math.isnan(quick([0.1, 0.3], [0.0, 0.9]).brown_forsythe_p)  # SciPy: F infinite, p = 0
    assert math.isnan(quick([0.1, 0.3] * 2, [0.0, 0.9] * 2).brown_forsythe_p)
    assert quick([0.1, 0.3] * 2, [0.5, 0.7] * 2).brown_forsythe_p == 1
    assert 0 < quick([0.1, 0.3], B).brown_forsythe_p < 1


def test_brown_forsythe_sees_a_spread_ten_times_as_wide() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=30), rng.normal(size=30)
    assert quick(a, b).brown_forsythe_p > 0.05
    assert quick(a, 10 * b).brown_forsythe_p < 1e-6


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 12), st.integers(0, 12))
def test_failures_follow_the_hypergeometric_distribution(bad_a: int, good_a: int, bad_b: int, good_b: int) -> None:
    n_a, n_b, bad = bad_a + good_a, bad_b + good_b, bad_a + bad_b
    ways = [math.comb(n_a, k) * math.comb(n_b, bad - k) for k in range(bad + 1)]
    extreme = sum(way for way in ways if way <= ways[bad_a])
    assert compare_failures(bad_a, n_a, bad_b, n_b) == pytest.approx(extreme / math.comb(n_a + n_b, bad))


@pytest.mark.parametrize(
    ("counts", "said"),
    [((3, 2, 0, 2), "failed_a cannot exceed n_a"), ((0, 2, -1, 2), "failed_b"), ((0, 2.5, 1, 2), "n_a")],
)
def test_impossible_failures_are_refused(counts: tuple[Any, ...], said: str) -> None:
    with pytest.raises(DataError, match=said):
        compare_failures(*counts)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx(np.array([0.03, 0.06, 0.06, 0.02]))
    assert holm([0.5, 0.6]).tolist() == [1.0, 1.0]
    assert holm([]).shape == (0,)
    assert holm([0, 1]).tolist() == [0.0, 1.0]


@given(P_VALUES)
def test_holm_never_lowers_keeps_the_order_and_rejects_as_the_procedure_does(p: list[float]) -> None:
    adjusted = holm(p)
    assert ((adjusted >= p) & (adjusted <= 1)).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()
    for alpha in (0.013, 0.05, 0.21):
        rejected = 0  # the procedure: step down until a p value exceeds alpha / (those left)
        while rejected < len(p) and (len(p) - rejected) * p[order[rejected]] <= alpha:
            rejected += 1
        assert (adjusted <= alpha).sum() == rejected


@given(P_VALUES)
def test_holm_lies_between_nothing_and_bonferroni(p: list[float]) -> None:
    assert (holm(p) <= np.minimum(1, len(p) * np.array(p))).all()


def test_tests_that_could_not_be_made_do_not_count() -> None:
    adjusted = holm([0.01, math.nan, 0.04])
    assert math.isnan(adjusted[1])
    assert adjusted[[0, 2]].tolist() == holm([0.01, 0.04]).tolist()


@pytest.mark.parametrize(
    "p", [[-0.1], [1.1], [math.inf], ["0.1"], [[0.1]], [[0.1, math.nan]], 0.1, [[0.1], [0.2, 0.3]]]
)
def test_holm_refuses_what_is_no_p_value(p: Any) -> None:
    with pytest.raises(DataError, match="p_values"):
        holm(p)
