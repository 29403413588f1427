from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.calibrate import at_rate, budget_of_run, first_steps, median_ratios
from evenkeel.errors import MeasureError

RATES = np.geomspace(1e-6, 1e-1, 20)


@given(rate=st.floats(1e-6, 1e-1), factor=st.floats(0.1, 100))
def test_steps_in_proportion_to_the_rate_are_read_off(rate: float, factor: float) -> None:
    found = at_rate("name", rate, RATES, factor * RATES, "why")
    assert found.max_update == pytest.approx(factor * rate, rel=0.06)  # to two digits
    assert found.reason == f"why, {rate:.2g}"


def test_a_rate_that_is_not_there_has_no_step() -> None:
    found = at_rate("name", None, RATES, RATES, "the steepest descent")
    assert found.max_update is None
    assert "not shown to fall" in found.reason


def test_steps_in_which_nothing_moved_say_nothing() -> None:
    assert at_rate("name", 1e-3, RATES, 0 * RATES, "why").max_update is None
    assert at_rate("name", 1e-3, RATES, RATES * (RATES > 1e-4), "why").max_update == pytest.approx(1e-3)


def test_the_first_five_steps_count() -> None:
    ratios = np.concatenate([np.full((2, 5), 0.002), np.ones((2, 3))], axis=1)
    assert first_steps(2e-5, ratios).max_update == 0.002


def test_the_ratio_is_what_an_update_limit_sees() -> None:
    updates, weights = np.array([[0.1, 0.3, np.nan, 9.0]]), np.array([[1.0, 0.0, np.nan, 1.0]])
    ratios = median_ratios(updates, weights, np.array([0.0, 1e6, 1.0, 0.0]))
    assert ratios.tolist() == [pytest.approx(0.3)]  # of .1, .3 / (.001 · 1000), and 9


def test_a_budget_is_divided() -> None:
    assert budget_of_run(0.5, 1000).max_update == 0.0005
    with pytest.raises(MeasureError, match="cannot be allowed to travel 0 times its weights' norm; give a positive"):
        budget_of_run(0, 10)
