from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.errors import DataError
from evenkeel.tasks import METRICS, majority_score, score

PAIRS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40)


def counts(pairs: list[tuple[int, int]]) -> tuple[int, int, int, int]:
    return (pairs.count((1, 1)), pairs.count((0, 1)), pairs.count((1, 0)), pairs.count((0, 0)))


def f1(hit: int, false: int, missed: int) -> float:
    return 2 * hit / (2 * hit + false + missed) if hit else 0.0


@given(PAIRS)
def test_scores_are_what_their_formulas_say(pairs: list[tuple[int, int]]) -> None:
    labels, predictions = map(list, zip(*pairs, strict=True))
    both, false, missed, neither = counts(pairs)
    assert score("accuracy", labels, predictions) == pytest.approx((both + neither) / len(pairs))
    assert score("f1", labels, predictions) == pytest.approx(f1(both, false, missed))
    under = (both + false) * (both + missed) * (neither + false) * (neither + missed)
    expected = (both * neither - false * missed) / math.sqrt(under) if under else 0.0
    if len(set(labels) | set(predictions)) > 1:
        assert score("matthews", labels, predictions) == pytest.approx(expected)
        macro = (f1(both, false, missed) + f1(neither, missed, false)) / 2
        assert score("macro_f1", labels, predictions) == pytest.approx(macro)


@pytest.mark.parametrize("metric", METRICS)
def test_a_perfect_score_is_one(metric: str) -> None:
    assert score(metric, [0, 1, 1, 0], [0, 1, 1, 0]) == 1.0


@pytest.mark.parametrize(
    ("metric", "expected"), [("accuracy", 0.6), ("f1", 0.75), ("macro_f1", 0.375), ("matthews", 0.0)]
)
def test_guessing_scores_what_it_scores(metric: str, expected: float) -> None:
    assert majority_score(metric, [1, 0, 1, 0, 1]) == pytest.approx(expected)


def test_bad_metrics_are_refused() -> None:
    with pytest.raises(DataError, match="unknown metric 'acuracy': did you mean 'accuracy'"):
        score("acuracy", [0, 1], [0, 1])
    with pytest.raises(DataError, match="f1 is for two classes; use macro_f1"):
        score("f1", [0, 1, 2], [0, 1, 1])
