"""Scores in training: that they are right, and that training does not notice."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.study._small import InlineEngine, MakePlan, same_results, standing

from evenkeel.study import Study, StudyFolder


def studied(make_plan: MakePlan, path: Path, **changes: object) -> tuple[Study, list]:
    study = Study(make_plan(**changes), StudyFolder(path))
    return study, study.run(InlineEngine())


@pytest.mark.parametrize("grouped", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_training_does_not_notice(make_plan: MakePlan, tmp_path: Path, grouped: bool) -> None:
    training = {"group_by_length": grouped}
    with_scores, theirs = studied(make_plan, tmp_path / "with", measures={"evaluations": 4}, training=training)
    without, ours = studied(make_plan, tmp_path / "without", training=training)
    assert [run.id for run in ours] == [run.id for run in theirs]
    assert same_results(without.folder, with_scores.folder, ours, theirs)


def test_scores_come_evenly_and_the_last_is_that_of_the_run(make_plan: MakePlan, tmp_path: Path) -> None:
    study, (run,) = studied(make_plan, tmp_path / "a", methods=["full"], seeds=1, measures={"evaluations": 4})
    table = study.folder.read_run(run.id, "course")
    assert table is not None
    assert table["step"].to_pylist() == [2, 4, 6, 8]  # of 8 steps
    assert table["phase"].to_pylist() == [0] * 4
    assert table["score"].to_pylist()[-1] == run.outcome["scores"]["validation"]


def test_each_phase_is_scored_in_its_end(make_plan: MakePlan, tmp_path: Path) -> None:
    study, (run,) = studied(
        make_plan, tmp_path / "a", methods=["gradual-unfreezing"], seeds=1, measures={"evaluations": 1}
    )
    table = study.folder.read_run(run.id, "course")
    assert table is not None
    steps, phases = table["step"].to_pylist(), table["phase"].to_pylist()
    assert phases == sorted(set(phases))  # one for each phase
    assert len(phases) > 1
    assert steps[-1] == run.outcome["steps"]
    assert steps == [steps[0] * (phase + 1) for phase in phases]  # phases are equally long here


def test_without_being_asked_nothing_is_scored(make_plan: MakePlan, tmp_path: Path) -> None:
    study, (run,) = studied(make_plan, tmp_path / "a", methods=["full"], seeds=1)
    assert study.folder.read_run(run.id, "course") is None


def test_scores_before_a_checkpoint_are_not_lost(make_plan: MakePlan, tmp_path: Path) -> None:
    class Once(InlineEngine):
        """Stops in the middle of the first run."""

        def run(self, jobs):  # type: ignore[no-untyped-def]
            for report in super().run(jobs):
                if report.event == "started":
                    self.stopping = True
                yield report

    plan = make_plan(
        methods=["full"], seeds=1, measures={"evaluations": 4}, checkpoints={"every_steps": 3, "keep": False}
    )
    study = Study(plan, StudyFolder(tmp_path / "a"))
    (run,) = study.run(Once())
    assert run.status == "queued"
    assert list(study.folder.checkpoints(run.id).glob("checkpoint-*"))
    (run,) = study.run(InlineEngine())
    assert standing(run) == "done"
    table = study.folder.read_run(run.id, "course")
    assert table is not None
    assert table["step"].to_pylist() == [2, 4, 6, 8]
