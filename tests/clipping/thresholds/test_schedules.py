from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.clipping.thresholds._drive import INF, NAN, compare, history, show

from evenkeel.clipping.thresholds import Cosine, Linear
from evenkeel.errors import ThresholdError

ENDS = st.sampled_from([1e-3, 0.05, 1.0, 40.0])
DTYPES = st.sampled_from([torch.float32, torch.float64])


@settings(max_examples=15)
@given(ENDS, ENDS, st.integers(1, 90), DTYPES)
def test_linear_is_a_straight_way(start: float, end: float, steps: int, dtype: torch.dtype) -> None:
    rows = history(0)
    wanted = [[start + (end - start) * min(1, step / steps)] * 3 for step in range(len(rows))]
    compare(show(Linear(start, end, steps), rows, dtype=dtype), wanted)


@settings(max_examples=15)
@given(ENDS, ENDS, st.integers(1, 90), DTYPES)
def test_cosine_is_half_a_wave(start: float, end: float, steps: int, dtype: torch.dtype) -> None:
    rows = history(0)
    left = [(1 + math.cos(math.pi * min(1, step / steps))) / 2 for step in range(len(rows))]
    compare(show(Cosine(start, end, steps), rows, dtype=dtype), [[end + (start - end) * share] * 3 for share in left])


@pytest.mark.parametrize("schedule", [Linear, Cosine])
def test_both_ends_are_reached(schedule: Any) -> None:
    got = show(schedule(1e5, 0.05, 10), [[1.0]] * 12, dtype=torch.float32)
    assert got[0].thresholds.item() == 1e5
    assert [limits.thresholds.item() for limits in got[10:]] == pytest.approx([0.05, 0.05], rel=0.2)
    assert show(schedule(0.05, 0.05, 10), [[1.0]], dtype=torch.float64)[0].thresholds.item() == pytest.approx(0.05)


@pytest.mark.parametrize("schedule", [Linear, Cosine])
@pytest.mark.parametrize(
    ("arguments", "name"),
    [((bad, 1.0, 5), "start") for bad in (0, -1, NAN, INF, True, "1")]
    + [((1.0, bad, 5), "end") for bad in (0, NAN, INF)]
    + [((1.0, 2.0, bad), "steps") for bad in (0, 2.5, True, "5")],
)
def test_what_cannot_be_is_refused(schedule: Any, arguments: tuple[Any, ...], name: str) -> None:
    with pytest.raises(ThresholdError, match=rf"{schedule.__name__}\.{name} must be .*, but got .*; "):
        schedule(*arguments)


@pytest.mark.parametrize("state", [None, {}, {"calls": 3}, {"calls": torch.ones(1)}, {"calls": torch.tensor(1.0)}])
def test_what_is_no_state_is_refused(state: Any) -> None:
    with pytest.raises(ThresholdError, match="Linear cannot load"):
        Linear(1.0, 2.0, 3).load_state_dict(state)


def test_they_show_their_configuration() -> None:
    assert repr(Linear(0.1, 1.0, steps=5)) == "Linear(start=0.1, end=1.0, steps=5)"
