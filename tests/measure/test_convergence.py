from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.errors import MeasureError
from evenkeel.measure import loss_area, steps_to

LOSSES = st.lists(st.floats(0, 10, allow_subnormal=False), min_size=2, max_size=30)


def test_an_exponential_loss_has_the_half_step_and_the_area_of_its_closed_form() -> None:
    steps = np.linspace(0, 1000, 100_001)
    losses = 0.2 + 0.5 * np.exp(-steps / 50)
    assert steps_to(steps, losses, 0.5) == pytest.approx(50 * math.log(2), rel=1e-4)
    assert loss_area(steps, losses) == pytest.approx(0.2 + 0.5 * 50 * (1 - math.exp(-20)) / 1000, rel=1e-6)


def test_a_score_counts_from_guessing() -> None:
    steps, scores = [100, 200, 300], [0.5, 0.75, 1.0]
    assert steps_to(steps, scores, 0.5, start=0.5) == 200
    assert steps_to(steps, scores, 0.25, start=0.0) == 50
    assert steps_to(steps, scores, 0.5) == 200  # without: from the first one
    assert steps_to(steps, scores, 0.9, start=0.5, final=0.75) == pytest.approx(190)


def test_the_way_may_be_that_to_another_value() -> None:
    assert steps_to([1, 2, 3], [1.0, 0.5, 0.0], 0.5, final=0.5) == 1.5
    assert math.isnan(steps_to([1, 2, 3], [1.0, 0.5, 0.0], 0.9, final=-5.0))  # never so far


@given(LOSSES, st.floats(0.01, 1.0))
def test_the_step_is_where_the_share_is_reached(losses: list[float], share: float) -> None:
    steps = np.arange(len(losses)) * 10.0
    found = steps_to(steps, losses, share)
    way = losses[-1] - losses[0]
    if way == 0:
        assert math.isnan(found)
        return
    covered = (np.interp(found, steps, losses) - losses[0]) / way
    assert covered == pytest.approx(share, rel=1e-6, abs=1e-6)


@given(LOSSES)
def test_the_area_lies_between_the_losses_and_ignores_where_steps_begin(losses: list[float]) -> None:
    steps = np.cumsum(np.arange(1, len(losses) + 1))
    area = loss_area(steps, losses)
    assert min(losses) - 1e-9 <= area <= max(losses) + 1e-9
    assert loss_area(steps + 500, losses) == pytest.approx(area)


def test_nan_is_passed_over_by_steps_and_not_by_the_area() -> None:
    assert steps_to([1, 2, 3], [1.0, math.nan, 0.0], 0.5) == 2
    assert math.isnan(loss_area([1, 2, 3], [1.0, math.nan, 0.0]))


@pytest.mark.parametrize("losses", [[], [math.nan], [0.5]])
def test_too_few_losses_have_no_way(losses: list[float]) -> None:
    assert math.isnan(steps_to(range(len(losses)), losses, 0.5))
    assert loss_area(range(len(losses)), losses) == pytest.approx(
        losses[0] if losses == [0.5] else math.nan, nan_ok=True
    )


def test_a_diverged_way_is_none() -> None:
    assert math.isnan(steps_to([1, 2], [1.0, 2.0], 0.5, final=math.inf))


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(MeasureError, match="there are 1 losses for 2 others"):
        loss_area([1, 2], [1.0])
    with pytest.raises(MeasureError, match="steps must rise"):
        steps_to([2, 1], [1.0, 2.0], 0.5)
    with pytest.raises(MeasureError, match="share must be a share"):
        steps_to([1, 2], [1.0, 2.0], 0.0)
