from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from evenkeel.errors import DataError
from evenkeel.stats import compare, describe, expected_maximum, holm


@pytest.mark.parametrize("statistic", [describe, expected_maximum, lambda scores: compare(scores, [1.0, 2.0])])
@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([0.5, float("nan"), float("nan")], r"\[1\] is nan \(2 of 3 are not finite\)"),
        ([float("inf")], "is inf"),
        ([[0.5, 0.6]], r"shape is \(1, 2\)"),
        (0.5, r"shape is \(\)"),
        ([[0.5], [0.6, 0.7]], "flat sequence"),
        (["0.5", "0.6"], "must be numbers"),
        ([0.5, None], "must be numbers"),
        ([True, False], "must be numbers"),
    ],
)
def test_scores_that_are_none_are_refused(statistic: Callable[[Any], Any], scores: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        statistic(scores)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"confidence": 95}, "0.95"),
        ({"confidence": float("nan")}, "confidence must lie between"),
        ({"resamples": 0}, "resamples must be at least 1"),
        ({"resamples": 10.5}, "resamples must be a whole number"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": None}, "seed must be a whole number"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        compare([1.0, 2.0], [3.0, 4.0], **options)


def test_any_container_of_numbers_is_read() -> None:
    expected = describe([1.0, 2.0, 4.0])
    assert describe((1, 2, 4)) == expected
    assert describe(np.array([1, 2, 4], dtype=np.float32)) == expected


def test_the_input_is_left_alone() -> None:
    scores, p_values = np.array([3.0, 1.0, 2.0]), np.array([0.5, 0.01])
    expected_maximum(scores), describe(scores), compare(scores, scores), holm(p_values)
    assert scores.tolist() == [3.0, 1.0, 2.0]
    assert p_values.tolist() == [0.5, 0.01]
