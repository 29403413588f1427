from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.errors import DataError
from evenkeel.tasks import METRICS, majority_score, metrics_for, score

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


@pytest.mark.parametrize("metric", [*metrics_for("classification", 2), *metrics_for("regression")])
def test_a_perfect_score_is_one(metric: str) -> None:
    assert score(metric, [0, 1, 1, 0], [0, 1, 1, 0]) == 1.0


@pytest.mark.parametrize(
    ("metric", "expected"), [("accuracy", 0.6), ("f1", 0.75), ("macro_f1", 0.375), ("matthews", 0.0)]
)
def test_guessing_scores_what_it_scores(metric: str, expected: float) -> None:
    assert majority_score(metric, [1, 0, 1, 0, 1]) == pytest.approx(expected)


def test_several_classes_have_no_f1() -> None:
    assert "f1" in metrics_for("classification", 2)
    assert "f1" not in metrics_for("classification", 3)
    kinds = (("classification", 2), ("regression", 0), ("causal-lm", 0))
    assert {name for problem, classes in kinds for name in metrics_for(problem, classes)} == set(METRICS)  # type: ignore[arg-type]


# --- answers


def test_answers_match_or_do_not() -> None:
    labels = ["yes", " no way", "Yes", "yes"]
    assert score("exact_match", labels, ["yes ", "no way", "yes", "no"]) == 0.5
    assert majority_score("exact_match", labels) == 0.5
    with pytest.raises(DataError, match="inverse_perplexity does not follow from predictions"):
        score("inverse_perplexity", labels, labels)


# --- regressions


NUMBERS = st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=2, max_size=40)


@given(NUMBERS)
def test_correlations_are_what_their_formulas_say(pairs: list[tuple[int, int]]) -> None:
    labels, predictions = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))

    def pearson(one: np.ndarray, other: np.ndarray) -> float:
        one, other = one - one.mean(), other - other.mean()
        under = math.sqrt(float(one @ one) * float(other @ other))
        return float(one @ other) / under if under else 0.0

    def ranks(values: np.ndarray) -> np.ndarray:
        return np.array([(values < value).sum() + ((values == value).sum() + 1) / 2 for value in values])

    assert score("pearson", labels.tolist(), predictions.tolist()) == pytest.approx(pearson(labels, predictions))
    expected = pearson(ranks(labels), ranks(predictions))
    assert score("spearman", labels.tolist(), predictions.tolist()) == pytest.approx(expected)


@pytest.mark.parametrize("metric", metrics_for("regression"))
def test_a_constant_correlates_with_nothing(metric: str) -> None:
    labels = [0.5, 2.0, 4.5]
    assert score(metric, labels, [2.5] * 3) == 0.0
    assert score(metric, labels, [1.0, 1.0 + 1e-16, 1.0]) == 0.0
    assert math.isfinite(score(metric, labels, [1.0, 1.0 + 3e-16, 1.0]))  # nearly constant: no warning either
    assert math.isfinite(score(metric, labels, [1e300, -1e300, 1e305]))
    assert majority_score(metric, labels) == 0.0


def test_bad_metrics_are_refused() -> None:
    with pytest.raises(DataError, match="unknown metric 'acuracy': did you mean 'accuracy'"):
        score("acuracy", [0, 1], [0, 1])
    with pytest.raises(DataError, match="unknown metric 'pearsson': did you mean 'pearson'"):
        majority_score("pearsson", [0, 1])
    with pytest.raises(DataError, match="f1 is for two classes; use macro_f1"):
        score("f1", [0, 1, 2], [0, 1, 1])
