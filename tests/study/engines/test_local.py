from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.study._small import InlineEngine, MakePlan, same_results, save_data, save_model, standing

from evenkeel.errors import PlanError
from evenkeel.study import RunResult, Study, StudyFolder, open_study
from evenkeel.study.engines import Job, LocalEngine, Report
from evenkeel.testing._processes import alive

LONG = {"epochs": 100_000.0, "record_every": 1_000_000}


@pytest.fixture(autouse=True)
def _nobody_elses_workers() -> None:
    while multiprocessing.active_children():  # of the test before: they are told to end, and take a moment
        time.sleep(0.05)


def kill_in_mid_run(scratch: Path, deaths: int) -> threading.Thread:
    """Kill a worker once it trains, so many times."""

    def kill() -> None:
        seen: set[Path] = set()
        while len(seen) < deaths:
            time.sleep(0.02)
            new = set(scratch.glob("evenkeel-*")) - seen
            if new:
                (worker,) = multiprocessing.active_children()
                os.kill(worker.pid or 0, signal.SIGKILL)
                seen |= new

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def study_of(make_plan: MakePlan, tmp_path: Path, name: str = "study", **changes: object) -> Study:
    return Study(make_plan(**changes), StudyFolder(tmp_path / name))


def gone(pids: list[int], *, seconds: float = 15) -> bool:
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not any(alive(pid) for pid in pids)


# --- a grid on two workers


@pytest.mark.slow
def test_two_workers_give_bit_for_bit_what_this_process_gives(make_plan: MakePlan, tmp_path: Path) -> None:
    there, here = study_of(make_plan, tmp_path, "there"), study_of(make_plan, tmp_path, "here")
    seen: list[Report] = []
    theirs, ours = there.run(LocalEngine(workers=2), on_report=seen.append), here.run(InlineEngine())

    events: dict[str, list[str]] = {}
    for report in seen:
        events.setdefault(report.job.spec.id, []).append(report.event)
    assert list(events.values()) == [["started", "ended"]] * 4
    assert [report.event for report in seen[:2]] == ["started", "started"]  # two at a time

    assert {run.outcome["provenance"]["threads"] for run in theirs} == {1}
    if {run.outcome["provenance"]["threads"] for run in ours} == {1}:  # else sums are taken in another order here
        assert same_results(here.folder, there.folder, ours, theirs)
    assert [run.outcome["scores"] for run in ours] == [run.outcome["scores"] for run in theirs]
    assert gone([worker.pid or 0 for worker in multiprocessing.active_children()])


# --- workers that die


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_nothing(make_plan: MakePlan, tmp_path: Path, scratch: Path) -> None:
    study = study_of(make_plan, tmp_path, methods=["full"], seeds=1, training={"epochs": 20.0})
    killer = kill_in_mid_run(scratch, deaths=1)
    events: list[str] = []
    (run,) = study.run(LocalEngine(workers=1), on_report=lambda report: events.append(report.event))
    killer.join()
    assert events == ["started", "lost", "started", "ended"]
    assert (standing(run), run.attempts) == ("done", 2)


@pytest.mark.slow
def test_a_run_that_kills_its_worker_again_and_again_is_lost(
    make_plan: MakePlan, tmp_path: Path, scratch: Path
) -> None:
    study = study_of(make_plan, tmp_path, methods=["full"], seeds=1, training=LONG)
    killer = kill_in_mid_run(scratch, deaths=3)
    (run,) = study.run(LocalEngine(workers=1))
    killer.join()
    assert (run.status, run.attempts) == ("lost", 3)


@pytest.mark.slow
def test_an_idle_worker_that_is_killed_is_replaced(make_plan: MakePlan, tmp_path: Path) -> None:
    study = study_of(make_plan, tmp_path, methods=["full"], seeds=2)

    def kill_between_runs(report: Report) -> None:
        if report.event == "ended" and report.job.spec.seed == 1:
            (worker,) = multiprocessing.active_children()
            os.kill(worker.pid or 0, signal.SIGKILL)
            worker.join()
            time.sleep(0.5)  # until the pool has seen it

    runs = study.run(LocalEngine(workers=1), on_report=kill_between_runs)
    assert [(standing(run), run.attempts) for run in runs] == [("done", 1), ("done", 1)]


@pytest.mark.slow
def test_a_run_that_raises_leaves_its_traceback_and_stops_nobody(make_plan: MakePlan, tmp_path: Path) -> None:
    path = save_data(tmp_path) / "validation.csv"
    files = {"train": tmp_path / "train.csv", "validation": path}
    study = study_of(make_plan, tmp_path, tasks=[{"name": "mine", **files}], methods=["full"], seeds=2)

    def hide_the_file_from_the_first(report: Report) -> None:
        if report.job.spec.seed == 1 and report.event == "started":
            path.rename(tmp_path / "hidden.csv")
        elif report.job.spec.seed == 1:
            (tmp_path / "hidden.csv").rename(path)

    runs = study.run(LocalEngine(workers=1), on_report=hide_the_file_from_the_first)
    assert [(standing(run), run.attempts) for run in runs] == [("error", 1), ("done", 1)]
    assert (runs[0].error or "").startswith("Traceback")
    assert "DataError: there is no file" in (runs[0].error or "")


def no_memory_for_two(job: Job, stopping: Callable[[], bool]) -> RunResult:
    """Stand for a run on a device that has memory for one."""
    taken = Path(job.model).parent / "taken"
    try:
        taken.mkdir()
    except FileExistsError:
        raise torch.OutOfMemoryError("CUDA out of memory") from None
    try:
        time.sleep(0.5)
        return RunResult(diverged=False, outcome={"failed": False}, tables={})
    finally:
        taken.rmdir()


@pytest.mark.slow
def test_out_of_memory_leaves_one_at_a_time(make_plan: MakePlan, tmp_path: Path) -> None:
    model = save_model(tmp_path / "models" / "mine")
    study = study_of(make_plan, tmp_path, models=[str(model)], methods=["full"], seeds=4)
    engine, said = LocalEngine(workers=2, work=no_memory_for_two), list[str]()
    runs = study.run(engine, on_notice=said.append)
    assert said == ["out of memory with 2 runs at a time: 1 at a time from now on"]
    assert [run.status for run in runs] == ["done"] * 4
    assert sum(run.attempts for run in runs) == 5
    assert engine.packing == 1


@pytest.mark.slow
def test_runs_that_are_stopped_leave_a_checkpoint_and_go_on(make_plan: MakePlan, tmp_path: Path) -> None:
    changes = {"methods": ["full"], "training": {"epochs": 40.0}}
    kept = study_of(make_plan, tmp_path, "kept", **changes, checkpoints={"every_minutes": 60})
    quiet = study_of(make_plan, tmp_path, "quiet", **changes)
    engine = LocalEngine(workers=2)

    def stop_soon(report: Report) -> None:
        threading.Timer(0.5, engine.stop).start()

    kept.run(engine, on_report=stop_soon)
    stopped = open_study(kept.folder.path)[1]
    assert [(run.status, run.attempts) for run in stopped] == [("queued", 1)] * 2
    assert len(list(kept.folder.path.glob("checkpoints/*/checkpoint-*"))) == 2
    ours, theirs = quiet.run(LocalEngine(workers=2)), kept.run(LocalEngine(workers=2))
    assert same_results(quiet.folder, kept.folder, ours, theirs)
    assert [run.attempts for run in theirs] == [2, 2]


def test_an_interruption_ends_the_workers(make_plan: MakePlan, tmp_path: Path, scratch: Path) -> None:
    workers: list[int] = []

    def interrupt(_: Report) -> None:
        workers.extend(worker.pid or 0 for worker in multiprocessing.active_children())
        raise KeyboardInterrupt

    study = study_of(make_plan, tmp_path, methods=["full"], seeds=1, training=LONG)
    with pytest.raises(KeyboardInterrupt):
        study.run(LocalEngine(workers=1), on_report=interrupt)
    assert len(workers) == 1
    assert gone(workers)


@pytest.mark.parametrize("workers", [0, -1])
def test_there_must_be_a_worker(workers: int) -> None:
    with pytest.raises(PlanError, match=f"workers must be positive, but got {workers}; leave it out for one a core"):
        LocalEngine(workers=workers)
    assert LocalEngine().packing == len(os.sched_getaffinity(0))
