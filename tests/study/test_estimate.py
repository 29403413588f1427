from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.study._small import MakePlan

from evenkeel.study import Calibration, Study, StudyFolder, calibrate, calibrate_side_by_side, estimate, execute
from evenkeel.study._calibrate import steps_of
from evenkeel.study.engines import Job


def made(make_plan: MakePlan, folder: Path, **changes: object) -> list[Job]:
    return Study(make_plan(**changes), StudyFolder(folder / "out")).jobs()


def took(step: float, other: float = 3.0) -> Calibration:
    return Calibration(step_seconds=step, other_seconds=other, recorded_bytes=100, other_bytes=1000, memory=10**8)


def test_a_run_is_its_steps_and_the_rest(make_plan: MakePlan, tmp_path: Path) -> None:
    jobs = made(make_plan, tmp_path, methods=["full", "component-clip"], seeds=3, training={"batch_size": 8})
    found = estimate(jobs, workers=2, calibrated=lambda wanted: [took(0.5), took(1.5)])
    assert [(share.runs, share.steps, share.run_seconds) for share in found.shares] == [(3, 8, 7.0), (3, 8, 15.0)]
    assert found.seconds == 3 * (7 + 15) / 2
    assert [share.run_bytes for share in found.shares] == [1400.0, 1400.0]  # recorded every second step
    assert found.memory == 10**8


def test_few_runs_are_tried_and_other_recipes_follow_from_them(make_plan: MakePlan, tmp_path: Path) -> None:
    jobs = made(
        make_plan,
        tmp_path,
        sweep={"training.batch_size": [8, 16], "component-clip.max_norm": [1, 2], "training.learning_rate": [1, 2]},
    )
    asked: list[tuple[int, str]] = []

    def calibrated(wanted: Sequence[Job]) -> list[Calibration]:
        asked.extend((job.spec.training.batch_size, job.spec.method) for job in wanted)
        return [took(step) for step in (1.0, 10.0, 2.0)]

    found = estimate(jobs, workers=1, calibrated=calibrated)
    assert asked == [(8, "full"), (16, "full"), (8, "component-clip:max_norm=1")]
    steps = {
        (share.example.training.batch_size, share.example.method[:4]): share.step_seconds for share in found.shares
    }
    assert steps == {(8, "full"): 1.0, (8, "comp"): 2.0, (16, "full"): 10.0, (16, "comp"): 20.0}
    assert sum(share.runs for share in found.shares) == len(jobs)


@pytest.mark.parametrize("method", ["full", "gradual-unfreezing"])
def test_the_steps_of_a_run_are_foretold(make_plan: MakePlan, tmp_path: Path, method: str) -> None:
    (job,) = made(make_plan, tmp_path, methods=[method], seeds=1)
    assert execute(job.spec, job.task, model=job.model).outcome["steps"] == steps_of(job)


def test_a_calibration_is_short_and_leaves_nothing(make_plan: MakePlan, tmp_path: Path) -> None:
    (job,) = made(make_plan, tmp_path, methods=["full"], seeds=1, training={"epochs": 50.0})
    found = calibrate(job)
    assert found.step_seconds > 0
    assert found.other_seconds > 0
    assert found.recorded_bytes > 0
    assert found.other_bytes > 0
    assert found.memory > 10**7
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_calibrations_run_side_by_side(make_plan: MakePlan, tmp_path: Path) -> None:
    jobs = made(make_plan, tmp_path, methods=["full"], seeds=1)
    assert len(calibrate_side_by_side(jobs, workers=2)) == 1
