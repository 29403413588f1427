from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.clipping.thresholds._drive import INF, NoSynchronisation, bag

from evenkeel import Components
from evenkeel.clipping.thresholds._clock import Clock
from evenkeel.clipping.thresholds._records import Blank, Records
from evenkeel.errors import ThresholdError


def records() -> Records:
    return Records("Mine", level=Blank(value=INF), ring=Blank(value=0, width=2), count=Blank(value=0, counts=True))


def fill(held: Records, parts: Components, value: float, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Add ``value`` to the counts of ``parts``, and return their rows."""
    held.bind(parts)
    with NoSynchronisation():
        rows = held.rows(torch.ones(len(parts), dtype=dtype))
        rows["count"].add_(int(value))
    return rows


@given(st.lists(st.sets(st.integers(0, 4), min_size=1), min_size=1, max_size=8))
def test_rows_follow_their_names_however_components_come_and_go(visits: list[set[int]]) -> None:
    parts, held, known = bag(1, 1, 1, 1, 1), records(), dict.fromkeys(range(5), 0)
    for visit in visits:
        places = sorted(visit, reverse=len(visit) % 2 == 0)
        rows = fill(held, Components([parts[place] for place in places]), 1)
        for place in places:
            known[place] += 1
        assert rows["count"].tolist() == [known[place] for place in places]
    state = held.state_dict()
    assert dict(zip(state["names"], state["count"].tolist(), strict=True)) == {
        f"p{place}": count for place, count in known.items() if count
    }


def test_rows_begin_blank_and_stay_the_same_tensors() -> None:
    held, parts = records(), bag(1, 1)
    rows = fill(held, parts, 0)
    assert rows["level"].tolist() == [INF, INF]
    assert rows["ring"].tolist() == [[0, 0], [0, 0]]
    assert rows["count"].dtype == torch.int64
    again = fill(held, bag(1, 1), 0)  # equal names, other objects
    assert all(again[key] is rows[key] for key in rows)  # a CUDA graph goes on writing where it wrote


def test_rows_take_the_dtype_of_the_norms_and_float32_at_least() -> None:
    held, parts = records(), bag(1)
    single, double = torch.float32, torch.float64
    for dtype, kept in ((torch.bfloat16, single), (double, double), (single, single)):
        rows = fill(held, parts, 1, dtype)
        assert rows["level"].dtype == kept
        assert rows["count"].dtype == torch.int64
    assert held.state_dict()["count"].tolist() == [3]


def test_a_state_that_was_loaded_but_not_used_is_saved_again() -> None:
    old, new = records(), records()
    fill(old, bag(1, 1), 3)
    new.load_state_dict(old.state_dict())
    assert repr(new.state_dict()) == repr(old.state_dict())


def test_a_copy_knows_its_components() -> None:
    held = records()
    fill(held, bag(1, 1), 3)
    assert copy.deepcopy(held).rows(torch.ones(2))["count"].tolist() == [3, 3]


def test_without_components_it_says_what_to_do() -> None:
    with pytest.raises(ThresholdError, match="call bind"):
        records().rows(torch.ones(2))
    held = records()
    held.bind(bag(1, 1))
    with pytest.raises(ThresholdError, match=r"shape \(3,\), but the threshold is bound to 2 components"):
        held.rows(torch.ones(3))


def changed(**changes: Any) -> dict[str, Any]:
    held = records()
    fill(held, bag(1, 1), 3)
    state = held.state_dict() | changes
    return {key: value for key, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "a state of a NoneType"),
        ({}, r"a state of \[\]"),
        (changed(ring=None), r"a state of \['count', 'level', 'names'\]"),
        (changed(more=torch.ones(2)), "'more'"),
        (changed(names="ab"), "no list of text"),
        (changed(names=["p0", 1]), "no list of text"),
        (changed(names=["p0", "p0"]), "twice"),
        (changed(names=["p0"]), r"of shape \(2,\), because it needs \(1,\)"),
        (changed(level=[1.0, 2.0]), "'level' is list instead of a tensor"),
        (changed(ring=torch.zeros(2, 3)), r"'ring' of shape \(2, 3\), because it needs \(2, 2\)"),
        (changed(count=torch.ones(2)), "'count' of dtype torch.float32, because it needs torch.int64"),
        (changed(level=torch.ones(2, dtype=torch.int64)), "because it needs a floating one"),
    ],
)
def test_what_is_no_state_is_refused_and_changes_nothing(state: Any, message: str) -> None:
    held = records()
    rows = fill(held, bag(1, 1), 5)
    with pytest.raises(ThresholdError, match=f"Mine cannot load .*{message}.*; "):
        held.load_state_dict(state)
    assert held.rows(torch.ones(2))["count"] is rows["count"]
    assert held.state_dict()["names"] == ["p0", "p1"]


def test_rows_and_counts_move_to_where_the_norms_are() -> None:
    held, clock = records(), Clock("Mine")
    fill(held, bag(1, 1), 1)
    clock.tick(torch.ones(2))
    elsewhere = torch.ones(2, device="meta")  # a device that every machine has
    assert {row.device.type for row in held.rows(elsewhere).values()} == {"meta"}
    assert clock.tick(elsewhere).device.type == "meta"
    assert clock.state_dict()["calls"].device.type == "meta"
