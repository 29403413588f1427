from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.errors import MeasureError
from evenkeel.measure import coverage, half_time, time_to

DISTANCES = st.lists(st.just(0.0) | st.floats(1e-3, 1e3), min_size=1, max_size=40)
SHARES = st.sampled_from([0.1, 0.5, 0.9, 1.0])


@pytest.mark.parametrize("rate", [0.5, 3.0, 20.0])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_an_exponential_approach_has_the_time_of_its_closed_form(rate: float, share: float) -> None:
    times = np.linspace(0, 1, 20_001)[1:]
    distances = 0.7 * (1 - np.exp(-rate * times))
    expected = -math.log(1 - share * (1 - math.exp(-rate))) / rate
    assert time_to(times, distances, share) == pytest.approx(expected, abs=1e-6)


def test_a_straight_way_takes_as_long_as_its_share() -> None:
    times = np.array([0.1, 0.4, 1.0])
    for share in (0.05, 0.25, 0.5, 0.9, 1.0):
        assert time_to(times, 3 * times, share) == pytest.approx(share)
    assert half_time(times, 3 * times) == time_to(times, 3 * times, 0.5)


@given(DISTANCES, SHARES)
def test_the_time_is_the_first_at_which_the_way_is_covered(distances: list[float], share: float) -> None:
    times = np.arange(1, len(distances) + 1) / len(distances)
    found = time_to(times, distances, share)
    if distances[-1] == 0:
        assert math.isnan(found)
        return
    shares = np.interp([0.0, found], [0.0, *times], [0.0, *coverage(distances)])
    assert 0 < found <= 1
    assert shares[1] == pytest.approx(share, rel=1e-6, abs=1e-9)
    before = coverage(distances)[times < found - 1e-12]
    assert (before < share).all()


@given(DISTANCES, st.integers(-9, 9))
def test_units_do_not_count(distances: list[float], power: int) -> None:
    times = np.arange(1, len(distances) + 1)
    one, other = half_time(times, distances), half_time(times * 2.0, np.array(distances) * 2.0**power)
    assert other == pytest.approx(2 * one, nan_ok=True)


@given(DISTANCES)
def test_the_last_share_is_one(distances: list[float]) -> None:
    shares = coverage(distances)
    assert shares.shape == (len(distances),)
    assert shares[-1] == 1.0 if distances[-1] else np.isnan(shares).all()


def test_components_are_columns_and_each_has_its_own_last_step() -> None:
    nan = math.nan
    shares = coverage([[1.0, nan, 0.0], [4.0, 3.0, 0.0], [nan, 6.0, 0.0]])
    np.testing.assert_array_equal(shares, [[0.25, nan, nan], [1.0, 0.5, nan], [nan, 1.0, nan]])


def test_what_was_frozen_begins_where_it_was_released() -> None:
    nan = math.nan  # nothing in the first half, half of the way in the next quarter
    times, distances = [0.25, 0.5, 0.51, 0.75, 1.0], [nan, nan, 0.0, 1.0, 2.0]
    assert half_time(times, distances) == 0.75


def test_what_goes_too_far_and_comes_back_counts_when_it_first_came() -> None:
    assert time_to([0.25, 0.5, 1.0], [4.0, 2.0, 2.0], 1.0) == 0.125


@pytest.mark.parametrize("distances", [[0.0, 0.0], [math.nan, math.nan], [1.0, math.inf], []])
def test_what_never_moved_or_diverged_has_no_time(distances: list[float]) -> None:
    assert math.isnan(half_time(np.arange(1, len(distances) + 1), distances))


@pytest.mark.parametrize(
    ("times", "distances", "share", "message"),
    [
        ([1, 1], [1, 2], 0.5, r"times must rise.*\[1.0, 1.0\].*sort them"),
        ([2, 1], [1, 2], 0.5, "times must rise"),
        ([-1, 1], [1, 2], 0.5, "times must rise from 0"),
        ([1, math.inf], [1, 2], 0.5, "times must rise"),
        ([1, 2], [1, 2, 3], 0.5, "there are 3 distances for 2 others"),
        ([1, 2], [[1, 2]], 0.5, "distances must have one axis"),
        ([1, 2], [1, 2], 0.0, "share must be a share between 0 and 1, but got 0.0"),
        ([1, 2], [1, 2], 1.5, "but got 1.5"),
        ([1, 2], [1, 2], math.nan, "but got nan"),
    ],
)
def test_what_makes_no_sense_is_refused(times: list[float], distances: list[float], share: float, message: str) -> None:
    with pytest.raises(MeasureError, match=message):
        time_to(times, distances, share)


def test_more_axes_than_two_are_refused() -> None:
    with pytest.raises(MeasureError, match=r"of shape \[steps\] or \[steps, components\]"):
        coverage(np.zeros((1, 1, 1)))
