from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from evenkeel.report._movement import Movement, half_times

COLUMNS = {
    "step": pa.int32(), "phase": pa.int16(), "component": pa.string(), "layer": pa.int16(), "role": pa.string(),
    "size": pa.int64(), "rms_change": pa.float32(), "phase_rms_change": pa.float32(),
}  # fmt: skip


def table(*rows: tuple[Any, ...]) -> pa.Table:
    """Rows of step, phase, component, layer, change, change in the phase."""
    full = [dict(zip(COLUMNS, (*row[:4], "query", 4, *row[4:]), strict=True)) for row in rows]
    return pa.Table.from_pylist(full, schema=pa.schema(list(COLUMNS.items())))


SOON, LATE = ((2, 0.8), (4, 1.0)), ((2, 0.2), (4, 1.0))


def moving(**ways: Any) -> pa.Table:
    """Components that move on some way, each in the layer that ends its name."""
    rows = [(step, 0, name, int(name[-1]), change, change) for name, way in ways.items() for step, change in way]
    return table(*rows)


def test_half_times_are_those_of_components_that_all_runs_have() -> None:
    found = half_times([Movement.of(moving(a0=SOON, b1=LATE, c2=SOON)), Movement.of(moving(b1=SOON, a0=LATE))])
    soon, late = 0.5 * 0.5 / 0.8, 0.5 + 0.5 * 0.3 / 0.8
    np.testing.assert_allclose(found, [[soon, late], [late, soon]], rtol=1e-6)
    assert half_times([]).shape == (0, 0)


def test_what_never_moved_has_no_half_time() -> None:
    assert half_times([Movement.of(moving(a0=((2, 0.0), (4, 0.0)), b1=SOON))]).shape == (1, 1)


def test_upper_layers_first_is_negative() -> None:
    assert Movement.of(moving(a0=LATE, b1=SOON)).layers_in_order == pytest.approx(-1)
    assert Movement.of(moving(a0=SOON, b1=LATE)).layers_in_order == pytest.approx(1)
    assert math.isnan(Movement.of(moving(a0=SOON, b0=LATE)).layers_in_order)
    assert math.isnan(Movement.of(table((2, 0, "head", None, 1.0, 1.0))).layers_in_order)


def test_a_layer_changes_as_its_largest_component_does() -> None:
    found = Movement.of(
        moving(a0=((2, 9.0), (4, 0.1)), b0=((2, 0.0), (4, 0.001)), c1=((2, 0.0), (4, 0.001)))
    ).layer_change
    assert found == pytest.approx((-1 - 3) / 2, abs=1e-6)
    assert math.isnan(Movement.of(moving(a0=((4, 0.0),))).layer_change)


def test_the_top_layer_moves_again_by_its_last_phase_over_its_first() -> None:
    top = [(2, 0, "b1", 1, 0.1, 0.1), (4, 1, "b1", 1, 0.101, 0.001)]
    low = [(4, 1, "a0", 0, 0.5, 0.5)]
    assert Movement.of(table(*top, *low)).moved_again == pytest.approx(-2, abs=1e-6)
    assert math.isnan(Movement.of(table(*top[:1])).moved_again)
    still = [(2, 0, "b1", 1, 0.1, 0.1), (4, 1, "b1", 1, 0.1, 0.0)]
    assert math.isnan(Movement.of(table(*still)).moved_again)
