from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from evenkeel.errors import DataError
from evenkeel.stats import wilson

COUNTS = st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
LEVELS = st.floats(0.5, 0.999)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_published_intervals(successes: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3."""
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(COUNTS, LEVELS)
def test_ends_are_where_the_score_test_just_rejects(counts: tuple[int, int], confidence: float) -> None:
    successes, n = counts
    seen, z = successes / n, stats.norm.ppf((1 + confidence) / 2)
    for end in wilson(successes, n, confidence=confidence):
        assert (seen - end) ** 2 == pytest.approx(z**2 * end * (1 - end) / n, abs=1e-9)


@given(COUNTS, LEVELS)
def test_holds_the_proportion_inside_0_and_1_and_mirrors(counts: tuple[int, int], confidence: float) -> None:
    successes, n = counts
    low, high = wilson(successes, n, confidence=confidence)
    assert 0 <= low <= successes / n <= high <= 1
    assert low < high
    mirrored = wilson(n - successes, n, confidence=confidence)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_no_trials_say_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((3, 2), "3 of 2"),
        ((-1, 2), "successes must be at least 0"),
        ((0, -1), "n must be at least 0"),
        ((0.5, 2), "successes must be a whole number"),
        ((1, 2, 95), "confidence must lie between"),
        ((0, 0, 1.0), "confidence must lie between"),
    ],
)
def test_impossible_counts_are_refused(arguments: tuple[Any, ...], said: str) -> None:
    successes, n, *level = arguments
    with pytest.raises(DataError, match=said):
        wilson(successes, n, **({"confidence": level[0]} if level else {}))
