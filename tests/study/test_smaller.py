"""A run that runs out of memory alone gives way to one of smaller micro-batches, where the plan allows it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.study._small import InlineEngine, MakePlan
from tests.study.test_driver import NOTHING, Fate, ToldEngine, open_records, stands

from evenkeel.errors import StoreError
from evenkeel.report import results_table
from evenkeel.study import Plan, RunRecord, Store, Study, StudyFolder, open_study
from evenkeel.study.engines import Job, Report

FIELD = "gradient_accumulation_steps"


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return StudyFolder(tmp_path / "study")


@pytest.fixture
def plan(make_plan: MakePlan) -> Callable[..., Plan]:
    def make(seeds: int = 2, **changes: Any) -> Plan:
        return make_plan(**{"methods": ["full"], "seeds": seeds, "smaller_batches": True, **changes})

    return make


def parts(job: Job | RunRecord) -> int:
    return int(job.spec.overrides.get(FIELD, 1))


def fits(most: int, *seeds: int) -> Callable[[Job, int], Fate]:
    """Let runs of these seeds need that many parts; the others have memory enough."""
    return lambda job, _: "no memory" if job.spec.seed in seeds and parts(job) < most else NOTHING


def test_another_run_takes_the_place_and_says_so(plan: Callable[..., Plan], folder: StudyFolder) -> None:
    study, said, told = Study(plan(), folder), list[str](), list[Report]()
    planned = study.jobs()
    engine = ToldEngine(fits(4, 1))
    runs = study.run(engine, on_report=told.append, on_notice=said.append)
    assert said == [
        "small, small, full, seed 1 ran out of memory alone, with 8 examples at a time: another run takes its place, "
        f"with 4 at a time and {FIELD} 2",
        "small, small, full, seed 1 ran out of memory alone, with 4 examples at a time: another run takes its place, "
        f"with 2 at a time and {FIELD} 4",
    ]
    assert [(run.spec.seed, parts(run), run.stands_for) for run in runs] == [(1, 4, planned[0].spec.id), (2, 1, None)]
    assert runs[0].id != planned[0].spec.id
    assert runs[0].spec.training.batch_size == 8  # of an optimizer step, as before
    assert stands(runs) == [("done", 3), ("done", 1)]
    assert engine.groups == [[1], [2], [1], [1]]
    assert [parts(report.instead) for report in told if report.instead] == [2, 4]
    assert open_records(folder) == runs  # one row for each planned run
    assert study.jobs()[0].spec == runs[0].spec


def test_the_same_command_finds_it_and_repeats_nothing(plan: Callable[..., Plan], folder: StudyFolder) -> None:
    first = Study(plan(), folder).run(ToldEngine(fits(2, 1)))
    engine = ToldEngine(fits(1))
    assert Study(plan(), folder).run(engine) == first
    assert engine.groups == []
    more = Study(plan(3), folder).run(engine)
    assert engine.groups == [[3]]
    assert more[:2] == first
    later = Study(plan(smaller_batches=False, seeds=3), folder).run(engine)  # what took a place keeps it
    assert later == more


def test_without_the_plans_leave_it_is_an_error(plan: Callable[..., Plan], folder: StudyFolder) -> None:
    said: list[str] = []
    runs = Study(plan(smaller_batches=False), folder).run(ToldEngine(fits(2, 1)), on_notice=said.append)
    assert stands(runs) == [("error", 1), ("done", 1)]
    assert said == []
    runs = Study(plan(), folder).run(ToldEngine(fits(2, 1)))
    assert [(run.status, parts(run)) for run in runs] == [("done", 2), ("done", 1)]


def test_where_several_run_at_a_time_fewer_do_before_batches_shrink(
    plan: Callable[..., Plan], folder: StudyFolder
) -> None:
    engine, said = ToldEngine(fits(2, 1), packing=2), list[str]()
    Study(plan(), folder).run(engine, on_notice=said.append)
    assert said[0] == "out of memory with 2 runs at a time: 1 at a time from now on"
    assert len(said) == 2
    assert engine.groups == [[1, 2], [1], [1]]


def test_a_batch_that_cannot_be_halved_is_an_error(plan: Callable[..., Plan], folder: StudyFolder) -> None:
    said: list[str] = []
    made = plan(1, training={"batch_size": 6})
    (run,) = Study(made, folder).run(ToldEngine(fits(99, 1)), on_notice=said.append)
    assert (run.status, parts(run), run.attempts) == ("error", 2, 2)
    assert "with 3 examples at a time, and no run with half of that can take its place" in said[-1]


def test_a_planned_run_stands_for_no_other(plan: Callable[..., Plan], folder: StudyFolder) -> None:
    swept = plan(1, sweep={f"overrides.{FIELD}": [1, 2]})
    runs = Study(swept, folder).run(ToldEngine(fits(2, 1)))
    assert [(parts(run), run.status, run.stands_for) for run in runs] == [(1, "error", None), (2, "done", None)]


def test_what_the_plan_takes_up_stands_for_nothing_any_more(plan: Callable[..., Plan], folder: StudyFolder) -> None:
    first = plan(1, sweep={f"overrides.{FIELD}": [1]})
    (before,) = Study(first, folder).run(ToldEngine(fits(2, 1)))
    assert before.stands_for is not None
    engine = ToldEngine(fits(2, 1))
    runs = Study(plan(1, sweep={f"overrides.{FIELD}": [1, 2]}), folder).run(engine)
    assert [(parts(run), run.status, run.stands_for) for run in runs] == [(1, "error", None), (2, "done", None)]
    assert engine.groups == [[1]]  # the one that is there was not done again


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_driver_that_is_killed_there_loses_nothing(
    plan: Callable[..., Plan], folder: StudyFolder, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """An exception stands for the signal: the store is left as it is then."""
    whole = Store.substitute

    def killed(store: Store, *given: Any) -> bool:
        if moment == "after":
            whole(store, *given)
        monkeypatch.setattr(Store, "requeue", lambda *_: None)  # nobody tidies up
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "substitute", killed)
    with pytest.raises(KeyboardInterrupt):
        Study(plan(), folder).run(ToldEngine(fits(2, 2)))
    monkeypatch.undo()
    engine = ToldEngine(fits(2, 2))
    runs = Study(plan(), folder).run(engine)
    assert [(run.spec.seed, parts(run), run.status) for run in runs] == [(1, 1, "done"), (2, 2, "done")]
    assert engine.groups == ([[2], [2]] if moment == "before" else [[2]])


def test_checkpoints_of_what_gave_way_go(plan: Callable[..., Plan], folder: StudyFolder) -> None:
    made = plan(1, checkpoints={"every_steps": 1, "keep": True})
    seen: list[Path] = []

    def fate(job: Job, _: int) -> Fate:
        assert job.checkpoints is not None
        seen.append(job.checkpoints.folder)
        job.checkpoints.folder.mkdir(parents=True)
        return "no memory" if parts(job) < 2 else NOTHING

    (run,) = Study(made, folder).run(ToldEngine(fate))
    assert [path.is_dir() for path in seen] == [False, True]
    assert seen[1] == folder.checkpoints(run.id)


def test_a_strangers_substitute_is_not_believed(plan: Callable[..., Plan], folder: StudyFolder) -> None:
    (run,) = Study(plan(1), folder).run(ToldEngine(fits(2, 1)))
    other = run.spec.model_copy(update={"method": "sam"})
    with closing(sqlite3.connect(folder.store)) as connection, connection:
        connection.execute("UPDATE run SET id = ?, spec = ?", (other.id, other.model_dump_json()))
    engine = ToldEngine(fits(1))
    with pytest.raises(StoreError, match="runs that this plan leaves out"):
        Study(plan(1), folder).run(engine)
    with closing(sqlite3.connect(folder.store)) as connection, connection:
        connection.execute("UPDATE run SET stands_for = '../../elsewhere'")
    with pytest.raises(StoreError, match="what it stands for is no id of a run"):
        Study(plan(1), folder).run(engine)
    assert engine.groups == []


def test_it_really_trains_and_the_report_keeps_it_apart(plan: Callable[..., Plan], folder: StudyFolder) -> None:
    class Narrow(InlineEngine):
        """Has no memory for the whole batch of seed 1."""

        def run(self, jobs: Sequence[Job]) -> Any:
            for job in jobs:
                if job.spec.seed == 1 and parts(job) == 1:
                    yield Report(job=job, event="started")
                    yield Report(job=job, event="raised", traceback="MemoryError", out_of_memory=True)
                else:
                    yield from super().run([job])

    runs = Study(plan(), folder).run(Narrow())
    assert all(run.finished for run in runs)
    assert [run.outcome["steps"] for run in runs] == [8, 8]
    table = results_table(open_study(folder.path)[0], runs)
    shown = "\n".join(str(cell) for column in table.columns for cell in column.cells)
    assert f"{FIELD} 2" in shown
    assert f"{FIELD} unset" in shown
