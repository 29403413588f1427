from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from evenkeel.errors import DataError
from evenkeel.stats import concordance


def test_friedmans_example() -> None:
    # Hollander & Wolfe 1973, p. 140 ff.: 22 runners, three ways of rounding first base; chi-squared 11.14, p = .0038.
    rows = [
        (5.40, 5.50, 5.55), (5.85, 5.70, 5.75), (5.20, 5.60, 5.50), (5.55, 5.50, 5.40), (5.90, 5.85, 5.70),
        (5.45, 5.55, 5.60), (5.40, 5.40, 5.35), (5.45, 5.50, 5.35), (5.25, 5.15, 5.00), (5.85, 5.80, 5.70),
        (5.25, 5.20, 5.10), (5.65, 5.55, 5.45), (5.60, 5.35, 5.45), (5.05, 5.00, 4.95), (5.50, 5.50, 5.40),
        (5.45, 5.55, 5.50), (5.55, 5.55, 5.35), (5.45, 5.50, 5.55), (5.50, 5.45, 5.25), (5.65, 5.60, 5.40),
        (5.70, 5.65, 5.55), (6.30, 6.30, 6.25),
    ]  # fmt: skip
    found = concordance(rows)
    assert (found.repetitions, found.things) == (22, 3)
    assert found.p == pytest.approx(0.0038, abs=5e-5)
    assert found.w == pytest.approx(11.14 / (22 * 2), abs=1e-3)


def test_orders_by_chance_are_no_order() -> None:
    rng = np.random.default_rng(0)
    p = [concordance(rng.normal(size=(8, 6))).p for _ in range(400)]
    assert 0.02 <= np.mean(np.array(p) <= 0.05) <= 0.08
    assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_the_same_order_every_time_is_one() -> None:
    assert concordance(np.arange(5) + np.zeros((4, 1))).w == pytest.approx(1)


@pytest.mark.parametrize("shape", [(1, 5), (5, 2), (0, 0), (4, 0)])
def test_too_few_tell_nothing(shape: tuple[int, int]) -> None:
    found = concordance(np.random.default_rng(0).normal(size=shape))
    assert math.isnan(found.w)
    assert math.isnan(found.p)


def test_equal_values_tell_nothing() -> None:
    assert math.isnan(concordance(np.ones((3, 4))).p)


def test_what_has_no_order_is_refused() -> None:
    with pytest.raises(DataError, match="not finite"):
        concordance([[1.0, 2.0, math.nan], [1.0, 2.0, 3.0]])
    with pytest.raises(DataError, match="a table of two axes, but they have 1"):
        concordance([1.0, 2.0, 3.0])
