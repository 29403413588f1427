from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from evenkeel.errors import DataError
from evenkeel.stats import _permutations, failed_regression, rank_correlation_p
from evenkeel.stats import _rank_correlation as ranks


def every_order(labels: Sequence[float], predictions: Sequence[float]) -> float:
    """The share of all orders of the predictions whose Spearman correlation is as high as the one given, or higher."""
    seen = spearmanr(labels, predictions).statistic
    found = [spearmanr(labels, order).statistic for order in itertools.permutations(predictions)]
    return sum(rho >= seen - 1e-9 for rho in found) / len(found)


@pytest.mark.parametrize(
    ("labels", "predictions"),
    [
        ([1.0, 2.0, 3.0, 4.0, 5.0], [1.5, 1.0, 3.5, 3.0, 9.0]),
        ([1, 1, 2, 2, 3], [0.1, 0.3, 0.3, 0.2, 0.9]),  # ties on both sides
        ([0.5, 0.1, 3.0, -2.0, 8.0], [0.0, 0.0, 0.0, 0.0, 1.0]),
        ([5.0, 4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 5.0, 4.0]),
    ],
)
def test_it_follows_all_orders(labels: list[float], predictions: list[float]) -> None:
    exact = every_order(labels, predictions)
    error = math.sqrt(exact * (1 - exact) / 9999)
    assert rank_correlation_p(labels, predictions) == pytest.approx(exact, abs=4 * error + 1.1e-4)


@given(st.lists(st.tuples(st.integers(-3, 3), st.floats(-1e6, 1e6)), min_size=3, max_size=30))
def test_centred_ranks_give_spearmans_correlation(pairs: list[tuple[int, float]]) -> None:
    labels, predictions = map(np.array, zip(*pairs, strict=True))
    if len(set(labels)) == 1 or len(set(predictions)) == 1:
        return
    one, other = (ranks._centred_ranks(values.astype(float)) for values in (labels, predictions))
    rho = one @ other / math.sqrt(float(one @ one) * float(other @ other))
    assert rho == pytest.approx(spearmanr(labels, predictions).statistic, abs=1e-9)


def test_only_the_order_counts() -> None:
    rng = np.random.default_rng(0)
    labels = rng.normal(size=40)
    predictions = labels + rng.normal(size=40) * 3
    p = rank_correlation_p(labels, predictions)
    assert p == rank_correlation_p(np.exp(labels), predictions * 1e-9 - 7)
    assert p == rank_correlation_p((labels * 1e6).astype(int), predictions)


@pytest.mark.parametrize("said", [0, 2.5, -1e9])
def test_constant_predictions_always_fail(said: float) -> None:
    assert rank_correlation_p([1, 2.5, 4] * 50, [said] * 150) == 1
    assert failed_regression([1, 2.5, 4] * 50, [said] * 150, alpha=0.999)


def test_predictions_that_fall_where_labels_rise_fail() -> None:
    assert failed_regression(range(30), range(30, 0, -1))
    assert not failed_regression(range(30), range(30))


@pytest.mark.parametrize("draw", ["normal", "lattice"])
def test_random_predictions_pass_no_more_often_than_alpha(draw: str) -> None:
    rng, runs, alpha = np.random.default_rng(1), 400, 0.1
    passed = 0
    for _ in range(runs):
        pair = rng.normal(size=(2, 30)) if draw == "normal" else rng.integers(0, 3, size=(2, 30))
        passed += rank_correlation_p(*pair, seed=rng, permutations=199) <= alpha
    assert 0 < passed / runs <= alpha + 2.5 * math.sqrt(alpha * (1 - alpha) / runs)


def test_p_is_a_rank_itself_counted_and_drawn_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.arange(50)
    assert rank_correlation_p(labels, labels, permutations=99) == 1 / 100
    whole = rank_correlation_p(labels, labels % 7, seed=3)
    monkeypatch.setattr(_permutations, "_NUMBERS_AT_ONCE", 170)  # three rows at a time
    assert rank_correlation_p(labels, labels % 7, seed=3) == whole


@pytest.mark.parametrize("test", [rank_correlation_p, failed_regression])
@pytest.mark.parametrize(
    ("labels", "predictions", "options", "said"),
    [
        ([], [], {}, "labels are empty"),
        ([0.5, 1, 1], [0, 1], {}, "3 and 2"),
        ([1.5, 1.5], [0, 1], {}, "all 2 labels are 1.5"),
        ([0.0, math.nan], [0, 1], {}, r"labels\[1\] is nan"),
        ([0.0, 1.0], [0, math.inf], {}, r"predictions\[1\] is inf"),
        ([0, 1], ["a", "b"], {}, "predictions must be numbers"),
        ([0, 1], [[0.2], [0.1]], {}, r"shape is \(2, 1\)"),
        ([0, 1], [0, 1], {"seed": -1}, "seed"),
        ([0, 1], [0, 1], {"permutations": 0}, "permutations must be at least 1"),
    ],
)
def test_what_cannot_be_tested_is_refused(
    test: Any, labels: list[Any], predictions: list[Any], options: dict[str, int], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        test(labels, predictions, **options)


def test_a_line_that_no_run_could_pass_is_refused() -> None:
    with pytest.raises(DataError, match="at least 19"):
        failed_regression([0, 1], [0, 1], permutations=18)
    with pytest.raises(DataError, match="alpha must lie between"):
        failed_regression([0, 1], [0, 1], alpha=1.0)
