from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.stats import expected_maximum

SCORES = st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=1, max_size=60)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=5))
def test_equals_the_mean_over_all_draws(scores: list[int]) -> None:
    counted = [np.mean([max(draw) for draw in itertools.product(scores, repeat=n)]) for n in range(1, len(scores) + 1)]
    assert expected_maximum(scores) == pytest.approx(np.array(counted), abs=1e-12)


@given(SCORES)
def test_equals_the_formula_as_published(scores: list[float]) -> None:
    v, total = np.sort(scores), len(scores)
    i = np.arange(1, total + 1)
    published = [np.sum(v * ((i / total) ** n - ((i - 1) / total) ** n)) for n in range(1, total + 1)]
    assert expected_maximum(scores) == pytest.approx(np.array(published), abs=1e-9)


@given(SCORES)
def test_starts_at_the_mean_never_falls_and_stays_below_the_best(scores: list[float]) -> None:
    curve = expected_maximum(scores)
    assert curve.shape == (len(scores),)
    assert curve[0] == pytest.approx(np.mean(scores), abs=1e-9)
    assert (np.diff(curve) >= -1e-12).all()
    assert (curve <= max(scores)).all()
    if len(set(scores)) > 1 and np.ptp(scores) > 1e-9:
        assert curve[-1] < max(scores)


def test_equal_scores_give_exactly_that_score() -> None:
    assert expected_maximum([0.1] * 7).tolist() == [0.1] * 7


def test_many_scores_neither_overflow_nor_warn() -> None:
    curve = expected_maximum(np.linspace(0, 1, 1000))
    assert curve[-1] == pytest.approx(1 - 1 / 999 / (np.e - 1), abs=1e-5)  # sum over k of (1 - k/N)^N -> 1 / (e - 1)


def test_no_scores_give_no_curve() -> None:
    assert expected_maximum([]).shape == (0,)
