"""What a run's record says of its training, from tables made by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from evenkeel.measure import TELEMETRY
from evenkeel.study._measured import measured

STEPS = np.arange(1, 102, 10)  # of 101
PARTS = [
    ("layer.0.query.weight", 0, "query", 100),
    ("layer.1.query.weight", 1, "query", 100),
    ("head.weight", None, "head", 10),
]


def telemetry(norms: Any, changes: Any) -> pa.Table:
    """A table of three components, with norms and changes as functions of step and place."""
    rows = [
        {
            "step": int(step), "phase": 0, "component": path, "layer": layer, "role": role, "kind": "weight",
            "size": size, "norm": norms(step, place), "rms_change": changes(step, place),
        }
        for step in STEPS
        for place, (path, layer, role, size) in enumerate(PARTS)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=TELEMETRY)


def log(losses: Any) -> pa.Table:
    return pa.table({"step": pa.array(range(1, len(losses) + 1), pa.int32()), "loss": pa.array(losses, pa.float64())})


def steady(*_: Any) -> float:
    return 1.0


def straight(step: int, _: int) -> float:
    return float(step)


def test_a_run_that_moves_in_a_straight_line_does_not_race() -> None:
    found = measured(telemetry(steady, straight), log([1.0, 0.5, 0.0]), steps=101)
    race = found["racing"]
    assert race["components"] == 3
    assert (race["half_time_median"], race["time_to_90_median"]) == pytest.approx((0.5, 0.9))
    assert (race["half_time_spread"], race["half_time_spread_by_size"]) == pytest.approx((0, 0), abs=1e-12)
    assert found["health"] == {"nonfinite_steps": 0, "vanishing": False, "vanished_layers": 0.0, "spikes": 0}
    assert found["convergence"] == {"loss_area": 0.5, "half_loss_drop": 2.0, "most_loss_drop": pytest.approx(2.8)}


def test_components_that_come_early_and_late_race() -> None:
    def early_and_late(step: int, place: int) -> float:
        return 1.0 if place != 0 else float(step > 50)

    race = measured(telemetry(steady, early_and_late), log([1.0]), steps=101)["racing"]
    assert race["half_time_spread"] > 0.4
    assert race["half_time_spread"] == race["half_time_spread_by_size"]  # the head is too small to matter


def test_gradients_that_vanish_below_the_head_are_told() -> None:
    def norms(step: int, place: int) -> float:
        return 1.0 if place == 2 or step == 1 else 1e-5

    health = measured(telemetry(norms, straight), log([1.0]), steps=101)["health"]
    assert (health["vanishing"], health["vanished_layers"]) == (True, 1.0)
    learnt = measured(telemetry(lambda step, _: 1.0 if step == 1 else 1e-5, straight), log([1.0]), steps=101)["health"]
    assert (learnt["vanishing"], learnt["vanished_layers"]) == (False, 0.0)  # all became small


def test_numbers_that_are_none_are_counted_by_step_and_leave_json() -> None:
    def norms(step: int, place: int) -> float:
        return math.nan if step == 11 and place == 0 else 1.0

    losses = [0.5] * 20 + [math.nan, 0.5]
    losses[10] = math.inf  # at the very step of the norm that is none
    losses[15] = 5.0
    found = measured(telemetry(norms, straight), log(losses), steps=101)
    assert found["health"]["nonfinite_steps"] == 2
    assert found["health"]["spikes"] == 1
    assert found["convergence"] == {"loss_area": None, "half_loss_drop": None, "most_loss_drop": None}
    json.dumps(found, allow_nan=False)


def test_a_run_without_curves_says_nothing() -> None:
    found = measured(TELEMETRY.empty_table(), log([]), steps=0)
    assert found["health"] == {"nonfinite_steps": 0, "vanishing": False, "vanished_layers": None, "spikes": 0}
    assert found["racing"]["components"] == 0
    assert set(found["racing"].values()) == {0, None}
    assert set(found["convergence"].values()) == {None}
    json.dumps(found, allow_nan=False)
