from __future__ import annotations

import numpy as np
import pytest
from tests.report.conftest import outcome

from evenkeel.report._results import cells
from evenkeel.report._stability import draw_stability, stabilities
from evenkeel.study import Plan, RunRecord, RunSpec


def swept(**changes) -> tuple[Plan, list[RunRecord]]:
    plan = Plan(
        tasks=[{"name": "rte"}], methods=["full", "component-clip"], seeds=2,
        sweep={"training.learning_rate": [1e-4, 1e-3], "component-clip.max_norm": [0.01, 0.05]}, **changes,
    )  # fmt: skip
    runs = []
    for run in plan.grid():
        spec = RunSpec(
            task="rte", metric="accuracy", data_fingerprint="d", model="tiny", model_fingerprint="m",
            method=run.method, seed=run.seed, training=run.training,
        )  # fmt: skip
        fails = run.training.learning_rate > 5e-4 and run.method == "full"
        made = outcome(0.5 if fails and run.seed == 1 else 0.7)
        runs.append(RunRecord(id=spec.id, spec=spec, status="done", attempts=1, outcome=made, error=None))
    return plan, runs


def test_failures_are_counted_by_method_and_recipe() -> None:
    plan, runs = swept()
    (found,) = stabilities(cells(plan, runs))
    assert (found.task, found.model) == ("rte", "tiny")
    assert found.methods == ("full", "component-clip:max_norm=0.01", "component-clip:max_norm=0.05")
    assert found.recipes == ("learning_rate 0.0001", "learning_rate 0.001")
    np.testing.assert_array_equal(found.failed, [[0, 1], [0, 0], [0, 0]])
    np.testing.assert_array_equal(found.finished, np.full((3, 2), 2))
    assert found.means[0].tolist() == pytest.approx([0.7, 0.6])


def test_the_map_holds_its_numbers() -> None:
    plan, runs = swept(exclude=[{"method": "full", "training.learning_rate": 1e-4}])
    (found,) = stabilities(cells(plan, runs))
    (heat,) = draw_stability(found).data
    by_name = dict(zip(heat.y, zip(heat.z, heat.text, strict=True), strict=True))
    assert by_name["full"] == ([None, 0.5], ["", "1/2"])


def test_a_study_that_sweeps_nothing_has_none(make_runs) -> None:
    assert stabilities(cells(*make_runs({"full": [0.7], "component-clip": [0.7]}))) == []
    options = {"full": [0.7], "component-clip:max_norm=1": [0.7], "component-clip:max_norm=2": [0.7]}
    assert len(stabilities(cells(*make_runs(options)))) == 1
