"""What the driver decides when runs go wrong, with an engine that does as it is told."""

from __future__ import annotations

import os
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.study._small import InlineEngine, MakePlan, same_results, standing

from evenkeel.errors import StoreError
from evenkeel.study import RunRecord, RunResult, Study, StudyFolder
from evenkeel.study.engines import Engine, Job, Raised, Report, report_of, work

NOTHING = RunResult(diverged=False, outcome={"scores": {"validation": 0.5}, "failed": False}, tables={})
Fate = str | RunResult


class ToldEngine(Engine):
    """Runs as many jobs side by side as its packing says; ``fate`` decides what becomes of each."""

    def __init__(self, fate: Callable[[Job, int], Fate], *, packing: int = 1) -> None:
        self.fate = fate
        self.packing = packing
        self.groups: list[list[int]] = []
        self.attempts = Counter[int]()

    def run(self, jobs: Sequence[Job]) -> Iterator[Report]:
        self.stopping = False
        waiting = list(jobs)
        while waiting and not self.stopping:
            group, waiting = waiting[: self.packing], waiting[self.packing :]
            self.groups.append([job.spec.seed for job in group])
            for job in group:
                yield Report(job=job, event="started")
            for job in group:
                self.attempts[job.spec.seed] += 1
                yield self._came(job, self.fate(job, self.attempts[job.spec.seed]))

    def _came(self, job: Job, fate: Fate) -> Report:
        if isinstance(fate, RunResult):
            return Report(job=job, event="ended", result=fate)
        if fate in ("lost", "stopped"):
            return Report(job=job, event=fate, traceback="ended by SIGSEGV" if fate == "lost" else None)  # type: ignore[arg-type]
        return Report(job=job, event="raised", traceback=f"Traceback\n{fate}", out_of_memory=fate == "no memory")


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return StudyFolder(tmp_path / "study")


Drive = Callable[..., tuple[list[RunRecord], list[str]]]


@pytest.fixture
def drive(make_plan: MakePlan, folder: StudyFolder) -> Drive:
    def run(engine: Engine, seeds: int = 4, **changes: Any) -> tuple[list[RunRecord], list[str]]:
        said: list[str] = []
        study = Study(make_plan(methods=["full"], seeds=seeds, **changes), folder)
        return study.run(engine, on_notice=said.append), said

    return run


def stands(runs: Sequence[RunRecord]) -> list[tuple[str, int]]:
    return [(run.status, run.attempts) for run in runs]


# --- runs that raise


def test_a_run_that_raises_is_tried_as_often_as_the_plan_says(drive: Drive) -> None:
    engine = ToldEngine(lambda job, attempt: "broken" if job.spec.seed == 2 and attempt < 3 else NOTHING)
    runs, _ = drive(engine, 3, retries=2)
    assert stands(runs) == [("done", 1), ("done", 3), ("done", 1)]
    assert engine.groups == [[1], [2], [3], [2], [2]]  # the others first
    assert runs[1].error is None


def test_what_raises_once_more_is_an_error(drive: Drive) -> None:
    runs, _ = drive(ToldEngine(lambda job, _: "broken" if job.spec.seed == 2 else NOTHING), 3, retries=1)
    assert stands(runs) == [("done", 1), ("error", 2), ("done", 1)]
    assert runs[1].error == "Traceback\nbroken"


def test_a_lost_run_tells_how_its_process_ended(drive: Drive) -> None:
    (run,), _ = drive(ToldEngine(lambda *_: "lost"), 1, retries=5)
    assert (run.status, run.attempts, run.error) == ("lost", 3, "ended by SIGSEGV")


def test_no_better_than_chance_is_a_result_of_its_own(drive: Drive) -> None:
    failed = RunResult(diverged=False, outcome={"failed": True}, tables={})
    diverged = RunResult(diverged=True, outcome={"failed": True}, tables={})
    fates = {1: NOTHING, 2: failed, 3: diverged}
    runs, _ = drive(ToldEngine(lambda job, _: fates[job.spec.seed]), 3)
    assert [run.status for run in runs] == ["done", "failed", "diverged"]
    assert all(run.finished for run in runs)
    engine = ToldEngine(lambda *_: NOTHING)
    drive(engine, 3)
    assert engine.groups == []


# --- out of memory


def test_out_of_memory_halves_the_packing_and_says_so(drive: Drive) -> None:
    engine = ToldEngine(lambda *_: "no memory" if len(engine.groups[-1]) > 2 else NOTHING, packing=4)
    runs, said = drive(engine, 6)
    assert said == ["out of memory with 4 runs at a time: 2 at a time from now on"]  # once, of four that told of it
    assert engine.groups == [[1, 2, 3, 4], [5, 6], [1, 2], [3, 4]]
    assert stands(runs) == [("done", 2)] * 4 + [("done", 1)] * 2


def test_out_of_memory_alone_is_an_error(drive: Drive) -> None:
    engine = ToldEngine(lambda job, _: "no memory" if job.spec.seed == 1 else NOTHING, packing=2)
    runs, said = drive(engine, 2)
    assert said == ["out of memory with 2 runs at a time: 1 at a time from now on"]
    assert stands(runs) == [("error", 2), ("done", 1)]


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
    ids=str,
)
def test_what_a_run_raises_is_told_apart(make_plan: MakePlan, error: Exception, is_memory: bool) -> None:
    def raising(*_: object) -> RunResult:
        raise error

    job = Study(make_plan(), StudyFolder(Path("unused"))).jobs()[0]
    found = work(job, by=raising)
    assert isinstance(found, Raised)
    assert found.out_of_memory is is_memory
    report = report_of(job, found)
    assert (report.event, report.out_of_memory) == ("raised", is_memory)
    assert (report.traceback or "").startswith("Traceback")


# --- Ctrl-C


@contextmanager
def answered() -> Iterator[None]:
    """Let Ctrl-C raise as in a terminal, whatever the process that runs the tests does with it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # put back
    finally:
        signal.signal(signal.SIGINT, before)


def press_at(seed: int, times: int = 1) -> Callable[[Job, int], Fate]:
    def fate(job: Job, _: int) -> Fate:
        if job.spec.seed == seed:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
        return NOTHING

    return fate


def test_ctrl_c_lets_what_runs_end_and_begins_nothing_new(
    drive: Drive, make_plan: MakePlan, folder: StudyFolder
) -> None:
    said: list[str] = []
    study = Study(make_plan(methods=["full"], seeds=6), folder)
    with answered(), pytest.raises(KeyboardInterrupt, match="4 of 6 runs have a result"):
        study.run(ToldEngine(press_at(3), packing=2), on_notice=said.append)
    assert said == ["stopping: 2 running runs end first, or leave a checkpoint; Ctrl-C again stops at once"]
    assert stands(open_records(folder)) == [("done", 1)] * 4 + [("queued", 0)] * 2
    engine = ToldEngine(lambda *_: NOTHING)
    runs, _ = drive(engine, 6)
    assert engine.groups == [[5], [6]]
    assert stands(runs) == [("done", 1)] * 6


def open_records(folder: StudyFolder) -> list[RunRecord]:
    from evenkeel.study import Store

    store = Store.reading(folder.store)
    try:
        return store.runs()
    finally:
        store.close()


def test_ctrl_c_twice_stops_at_once(make_plan: MakePlan, folder: StudyFolder) -> None:
    study = Study(make_plan(methods=["full"], seeds=4), folder)
    with answered(), pytest.raises(KeyboardInterrupt) as caught:
        study.run(ToldEngine(press_at(2, times=2), packing=2))
    assert caught.value.args == ()
    assert stands(open_records(folder)) == [("done", 1), ("queued", 1), ("queued", 0), ("queued", 0)]


def test_ctrl_c_during_the_last_run_is_no_interruption(drive: Drive) -> None:
    with answered():
        runs, _ = drive(ToldEngine(press_at(2)), 2)
    assert stands(runs) == [("done", 1)] * 2


def test_ctrl_c_that_somebody_ignores_stays_ignored(drive: Drive) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        runs, said = drive(ToldEngine(press_at(1)), 2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stands(runs) == [("done", 1)] * 2
    assert said == []


def test_a_stopped_run_waits_and_goes_on_from_its_checkpoint(make_plan: MakePlan, folder: StudyFolder) -> None:
    plan = make_plan(methods=["full"], seeds=2, checkpoints={"every_steps": 1_000_000})
    whole = StudyFolder(folder.path.with_name("whole"))
    ours = Study(make_plan(methods=["full"], seeds=2), whole).run(InlineEngine())

    def press(report: Report) -> None:
        if report.event == "started":
            os.kill(os.getpid(), signal.SIGINT)

    with answered(), pytest.raises(KeyboardInterrupt, match="0 of 2 runs have a result"):
        Study(plan, folder).run(InlineEngine(), on_report=press)
    assert stands(open_records(folder)) == [("queued", 1), ("queued", 0)]
    assert [path.name for path in folder.checkpoints(ours[0].id).glob("checkpoint-*")] == ["checkpoint-1"]
    theirs = Study(plan, folder).run(InlineEngine())
    assert same_results(whole, folder, ours, theirs)
    assert [run.attempts for run in theirs] == [2, 1]
    assert not (folder.path / "checkpoints").exists()  # a run that ended needs none


def test_the_plan_can_keep_the_last_checkpoint(make_plan: MakePlan, folder: StudyFolder) -> None:
    plan = make_plan(methods=["full"], seeds=1, checkpoints={"every_steps": 3, "keep": True})
    (run,) = Study(plan, folder).run(InlineEngine())
    kept = folder.checkpoints(run.id)
    assert [path.name for path in kept.glob("checkpoint-*")] == ["checkpoint-6"]
    Study(plan, folder).run(InlineEngine())
    assert kept.is_dir()
    dropping = make_plan(methods=["full"], seeds=1, checkpoints={"every_steps": 3})
    Study(dropping, folder).run(InlineEngine())
    assert not (folder.path / "checkpoints").exists()


# --- a full disk


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.slow
@pytest.mark.parametrize("event", ["started", "ended"])
def test_a_disk_that_is_full_stops_the_study_and_loses_nothing(
    make_plan: MakePlan, folder: StudyFolder, tmp_path: Path, event: str
) -> None:
    whole = StudyFolder(tmp_path / "whole")
    ours = Study(make_plan(), whole).run(InlineEngine())
    disk = full_disk()

    def fill(report: Report) -> None:
        if report.job.spec.seed == 2 and report.event == event:
            disk.__enter__()

    study = Study(make_plan(), folder)
    try:
        with pytest.raises(StoreError, match=r"(?s)same command again"):
            study.run(InlineEngine(), on_report=fill)
    finally:
        disk.__exit__(None, None, None)
    before = open_records(folder)
    assert [standing(run) for run in before][:2] == ["done", "done"]
    theirs = study.run(InlineEngine())
    assert same_results(whole, folder, ours, theirs)
    assert [run.attempts for run in theirs if run.id in {done.id for done in before if done.finished}] == [1] * sum(
        run.finished for run in before
    )


def test_a_disk_that_is_full_from_the_start_is_told(make_plan: MakePlan, folder: StudyFolder) -> None:
    with full_disk(), pytest.raises(StoreError, match="cannot be written"):
        Study(make_plan(), folder).run(InlineEngine())
