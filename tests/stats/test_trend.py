from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from evenkeel.errors import DataError
from evenkeel.stats import trend


def test_signs_of_correlations_are_what_is_drawn() -> None:
    values = np.random.default_rng(7).normal(size=(9, 4)) + np.linspace(0, 0.5, 4)
    correlations = [stats.spearmanr(range(4), row).statistic for row in values]
    signs = np.array(list(itertools.product([-1, 1], repeat=9)))
    exact = np.mean(np.abs(signs @ correlations) >= abs(sum(correlations)) - 1e-9)
    assert 0.001 < exact < 0.5
    assert trend(values).p == pytest.approx(exact, rel=0.2)


def test_correlations_are_spearmans_with_the_column() -> None:
    values = np.random.default_rng(0).normal(size=(6, 7))
    wanted = [stats.spearmanr(range(7), row).statistic for row in values]
    assert trend(values).correlations == pytest.approx(wanted)
    tied = [[1.0, 1.0, 2.0], [3.0, 3.0, 3.0]]
    assert trend(tied).correlations == pytest.approx([stats.spearmanr(range(3), tied[0]).statistic, 0])


def test_both_directions_count() -> None:
    values = np.random.default_rng(1).normal(size=(8, 5)) + np.arange(5)
    up, down = trend(values), trend(-values)
    assert up.p == down.p < 0.01
    assert up.correlations == pytest.approx([-one for one in down.correlations])


def test_orders_by_chance_are_no_trend() -> None:
    rng = np.random.default_rng(0)
    assert 0.02 <= np.mean([trend(rng.normal(size=(8, 5))).p <= 0.05 for _ in range(400)]) <= 0.08


def test_settings_that_give_much_the_same_are_no_more_evidence() -> None:
    rng = np.random.default_rng(0)
    drawn = [rng.normal(size=(10, 7)).cumsum(axis=1) for _ in range(400)]  # every row wanders, up as readily as down
    assert np.mean([trend(walks).p <= 0.05 for walks in drawn]) <= 0.08
    assert np.mean([stats.page_trend_test(walks).pvalue <= 0.05 for walks in drawn]) > 0.1  # one side, and too often


def test_equal_values_make_it_careful() -> None:
    rng = np.random.default_rng(0)
    assert np.mean([trend(rng.integers(0, 2, size=(8, 5))).p <= 0.05 for _ in range(400)]) <= 0.07


@pytest.mark.parametrize("shape", [(4, 5), (9, 2), (0, 0), (9, 0)])
def test_too_few_tell_nothing(shape: tuple[int, int]) -> None:
    found = trend(np.random.default_rng(0).normal(size=shape))
    assert math.isnan(found.p)
    assert len(found.correlations) == shape[0]


def test_what_has_no_order_is_refused() -> None:
    with pytest.raises(DataError, match="not finite"):
        trend([[1.0, 2.0, math.nan], [1.0, 2.0, 3.0]])
    with pytest.raises(DataError, match="a table of two axes, but they have 1"):
        trend([1.0, 2.0, 3.0])
