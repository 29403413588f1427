from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.errors import MeasureError
from evenkeel.measure import Racing, racing, weighted_quantile

VALUES = st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=1, max_size=40)
WEIGHTED = st.lists(st.tuples(st.integers(-20, 20), st.integers(1, 9)), min_size=1, max_size=20)
SHARES = st.sampled_from([0.01, 0.25, 0.5, 0.75, 0.9, 1.0])


@given(VALUES, SHARES)
def test_with_equal_weights_it_is_numpys(values: list[float], share: float) -> None:
    found = weighted_quantile(values, np.full(len(values), 3.0), share)
    assert found == np.quantile(values, share, method="inverted_cdf")


@given(WEIGHTED, SHARES)
def test_a_weight_is_so_many_copies(pairs: list[tuple[int, int]], share: float) -> None:
    values, weights = zip(*pairs, strict=True)
    copies = [value for value, weight in pairs for _ in range(weight)]
    assert weighted_quantile(values, weights, share) == weighted_quantile(copies, np.ones(len(copies)), share)


@given(WEIGHTED)
def test_by_size_is_the_same_as_by_entry(pairs: list[tuple[int, int]]) -> None:
    times, sizes = zip(*pairs, strict=True)
    entries = [time for time, size in pairs for _ in range(size)]
    by_size, by_entry = racing(times, sizes), racing(entries)
    assert by_size.spread_by_size == by_entry.spread
    assert by_size.median_by_size == by_entry.median


def test_components_of_one_size_race_alike_by_size_or_not() -> None:
    found = racing([0.1, 0.4, 0.2, 0.9], [5, 5, 5, 5])
    assert (found.spread, found.median) == (found.spread_by_size, found.median_by_size)
    assert found.spread == pytest.approx(0.3)
    assert found == racing([0.1, 0.4, 0.2, 0.9])


def test_what_has_no_time_is_left_out() -> None:
    assert racing([0.1, math.nan, 0.3], [1, 1000, 1]) == racing([0.1, 0.3], [1, 1])


def test_nobody_races() -> None:
    for times in ([], [math.nan]):
        found = racing(times, [1.0] * len(times))
        assert found.components == 0
        assert all(math.isnan(getattr(found, name)) for name in Racing.__dataclass_fields__ if name != "components")


def test_one_large_component_hides_the_others_by_size_alone() -> None:
    found = racing([0.1, 0.5, 0.9, 0.5], [1, 1, 1, 1000])
    assert found.spread == pytest.approx(0.4)
    assert found.spread_by_size == 0


@pytest.mark.parametrize(
    ("values", "weights", "share", "message"),
    [
        ([1, math.nan], [1, 1], 0.5, "a value is not finite"),
        ([1, 2], [1, -1], 0.5, "weights must be finite, none negative"),
        ([1, 2], [0, 0], 0.5, "not all 0"),
        ([1, 2], [1, math.inf], 0.5, "weights must be finite"),
        ([1, 2], [1], 0.5, "there are 1 weights for 2 others"),
        ([1, 2], [1, 1], 2.0, "share must be a share"),
    ],
)
def test_what_makes_no_sense_is_refused(values: list[float], weights: list[float], share: float, message: str) -> None:
    with pytest.raises(MeasureError, match=message):
        weighted_quantile(values, weights, share)


def test_components_without_entries_are_refused() -> None:
    with pytest.raises(MeasureError, match="a size is not positive"):
        racing([0.1, 0.2], [1, 0])
