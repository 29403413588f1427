from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenkeel.errors import DataError
from evenkeel.stats import better_than_chance, failed
from evenkeel.stats._chance import _permutation_p

BITS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=60)


def every_order(labels: Sequence[int], predictions: Sequence[int]) -> float:
    """The share of all orders of the predictions that agree with the labels as often as the one given, or more."""
    seen = sum(map(int.__eq__, labels, predictions))
    agreements = [sum(map(int.__eq__, labels, order)) for order in itertools.permutations(predictions)]
    return sum(count >= seen for count in agreements) / len(agreements)


@given(BITS)
def test_two_classes_follow_the_hypergeometric_distribution(pairs: list[tuple[int, int]]) -> None:
    labels, predictions = zip(*pairs, strict=True)
    if len(set(labels)) == 1:
        return
    n, ones, said, hits = len(pairs), sum(labels), sum(predictions), sum(a & b for a, b in pairs)
    ways = [math.comb(ones, k) * math.comb(n - ones, said - k) for k in range(hits, min(ones, said) + 1)]
    assert better_than_chance(labels, predictions) == pytest.approx(sum(ways) / math.comb(n, said), rel=1e-9)


def test_lady_tasting_tea() -> None:
    truth = [0, 0, 0, 0, 1, 1, 1, 1]  # Fisher 1935: all eight cups right, or one of each kind wrong
    assert better_than_chance(truth, truth) == pytest.approx(1 / 70)
    assert better_than_chance(truth, [1, 0, 0, 0, 0, 1, 1, 1]) == pytest.approx(17 / 70)


@pytest.mark.parametrize(
    ("labels", "predictions"),
    [
        ([0, 0, 1, 1, 2, 2, 2], [0, 0, 1, 1, 2, 2, 0]),
        ([0, 1, 1, 2, 2, 2, 0], [2, 1, 1, 2, 0, 2, 1]),
        ([0, 1, 2, 3, 0, 1, 2], [1, 2, 3, 0, 1, 2, 3]),
        ([0, 0, 0, 1, 1, 1, 1], [0, 0, 2, 1, 1, 1, 2]),  # a class that is only predicted
        ([5, 5, -3, -3, 9, 9, 9], [5, 5, 5, -3, -3, -3, 5]),  # a class that never is, and any numbers as classes
    ],
)
def test_more_classes_follow_all_orders(labels: list[int], predictions: list[int]) -> None:
    exact = every_order(labels, predictions)
    error = math.sqrt(exact * (1 - exact) / 9999)
    assert better_than_chance(labels, predictions) == pytest.approx(exact, abs=4 * error + 1.1e-4)


def test_permutation_test_tends_to_fisher_on_two_classes() -> None:
    labels, predictions = [0] * 12 + [1] * 12, [0] * 8 + [1] * 4 + [0] * 5 + [1] * 7
    table = np.array([[8, 4], [5, 7]])
    drawn = _permutation_p(table, np.random.default_rng(0), 9999)
    assert drawn == pytest.approx(better_than_chance(labels, predictions), abs=0.02)


def test_the_p_value_is_a_rank_among_tables_itself_counted() -> None:
    labels = [0, 1, 2] * 20
    assert better_than_chance(labels, labels, permutations=199) == 1 / 200
    assert better_than_chance(labels, [1, 2, 0] * 20, permutations=199) == 1


def test_many_classes_are_drawn_in_portions() -> None:
    labels = np.arange(2000) % 1000  # a million cells in a table: four at a time
    assert better_than_chance(labels, labels, permutations=9) == 1 / 10


def test_seeds_repeat_and_generators_move_on() -> None:
    rng = np.random.default_rng(3)
    labels, predictions = rng.integers(0, 3, 60), rng.integers(0, 3, 60)

    def p(seed: int | np.random.Generator) -> float:
        return better_than_chance(labels, predictions, seed=seed, permutations=499)

    assert p(1) == p(1) == p(np.random.default_rng(1))
    assert len({p(seed) for seed in range(5)}) > 1
    assert len({p(rng) for _ in range(5)}) > 1


@pytest.mark.parametrize("labels", [[0, 1, 1], [0, 1, 2]])
@pytest.mark.parametrize("said", [0, 1, 7])
def test_constant_predictions_always_fail(labels: list[int], said: int) -> None:
    assert better_than_chance(labels * 50, [said] * 150) == 1
    assert failed(labels * 50, [said] * 150, alpha=0.999)


def test_a_majority_vote_with_a_good_score_fails_and_a_poor_score_that_learnt_passes() -> None:
    labels = [1] * 80 + [0] * 20
    collapsed = [1] * 99 + [0]  # accuracy 0.81
    learnt = [1] * 50 + [0] * 30 + [0] * 17 + [1] * 3  # accuracy 0.67
    assert failed(labels, collapsed)
    assert not failed(labels, learnt)


def test_being_wrong_throughout_is_a_failure() -> None:
    assert failed([0, 1] * 20, [1, 0] * 20)


def test_a_p_value_of_alpha_passes_in_spite_of_rounding() -> None:
    truth = [0, 0, 0, 1, 1, 1]  # 1 of 20 orders, which SciPy gives as 0.05000000000000001
    assert not failed(truth, truth, alpha=0.05)
    assert failed(truth, truth, alpha=0.049)
    three = [0, 1, 2] * 20
    assert not failed(three, three, permutations=19)


@given(st.permutations([0, 1, 2]), st.integers(0, 2**32))
@settings(max_examples=20)
def test_names_of_classes_do_not_matter(names: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 40)
    predictions = np.where(rng.random(40) < 0.3, labels, rng.integers(0, 3, 40))
    if len(set(labels.tolist())) == 1:
        return
    renamed = [np.array(names)[values] for values in (labels, predictions)]
    assert better_than_chance(*renamed) == pytest.approx(better_than_chance(labels, predictions), abs=0.04)


@pytest.mark.parametrize(("classes", "permutations"), [(2, 1), (3, 199), (5, 199)])
def test_random_predictions_pass_no_more_often_than_alpha(classes: int, permutations: int) -> None:
    rng, runs, alpha = np.random.default_rng(classes), 400, 0.1
    uneven = np.arange(1, classes + 1) / np.arange(1, classes + 1).sum()
    passed = 0
    for _ in range(runs):
        labels, predictions = (rng.choice(classes, size=50, p=uneven) for _ in range(2))
        passed += better_than_chance(labels, predictions, seed=rng, permutations=permutations) <= alpha
    assert passed / runs <= alpha + 2.5 * math.sqrt(alpha * (1 - alpha) / runs)
    assert passed > 0  # nor is it never


def test_booleans_are_classes() -> None:
    assert better_than_chance([True, False] * 5, np.array([1, 0] * 5)) == better_than_chance([1, 0] * 5, [1, 0] * 5)


@pytest.mark.parametrize("test", [better_than_chance, failed])
@pytest.mark.parametrize(
    ("labels", "predictions", "options", "said"),
    [
        ([], [], {}, "labels are empty"),
        ([0, 1], [], {}, "predictions are empty"),
        ([0, 1, 1], [0, 1], {}, "3 and 2"),
        ([1, 1], [0, 1], {}, "all 2 labels are 1"),
        ([0.0, 1.0], [0, 1], {}, "labels must be class numbers"),
        ([0, 1], ["a", "b"], {}, "predictions must be class numbers"),
        ([0, 1], [[0.2, 0.8], [0.1, 0.9]], {}, r"shape is \(2, 2\)"),
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
        failed([0, 1], [0, 1], permutations=18)
    with pytest.raises(DataError, match="alpha must lie between"):
        failed([0, 1], [0, 1], alpha=1.0)
