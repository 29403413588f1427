"""The contract for engines finds what breaks it: each test of it fails for an engine made to fail it."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

import pytest

from evenkeel.study.engines import Engine, Job, Report, Work, end_with, report_of, work
from evenkeel.testing import EngineContract

pytestmark = pytest.mark.no_cover  # engines of tests, whose processes would take longer to be measured than to run
FORK = multiprocessing.get_context("fork")
TESTS = sorted(name for name, _ in inspect.getmembers(EngineContract) if name.startswith("test_"))
ENDED_FROM_OUTSIDE = {
    "test_an_interruption_ends_every_process",
    "test_a_killed_driver_takes_its_jobs_along",
}


@dataclass
class Worker:
    """A forked process, and what it does."""

    process: Any
    connection: Connection
    job: Job | None = None


class ForkEngine(Engine):
    """Forked processes that take one job after the other: an engine of one's own, plain and right."""

    def __init__(self, by: Work, *, at_a_time: int) -> None:
        self.by, self.packing, self.workers = by, at_a_time, list[Worker]()

    def run(self, jobs: Sequence[Job]) -> Iterator[Report]:
        self.stopping, waiting = False, deque(jobs)
        try:
            while True:
                while waiting and len(self.busy()) < self.packing and not self.stopping:
                    worker = next((worker for worker in self.workers if worker.job is None), None) or self.start()
                    worker.job = waiting.popleft()
                    worker.connection.send(worker.job)
                    yield Report(job=worker.job, event="started")
                if not self.busy():
                    return
                if self.stopping:
                    self.tell()
                ready = wait([worker.connection for worker in self.busy()], timeout=0.1)
                for worker in [worker for worker in self.busy() if worker.connection in ready]:
                    yield self.news(worker)
        finally:
            self.close()

    def busy(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.job is not None]

    def start(self) -> Worker:
        ours, theirs = FORK.Pipe()
        process = FORK.Process(target=self.serve, args=(ours, theirs, os.getpid()))
        process.start()
        theirs.close()
        self.workers.append(Worker(process, ours))
        return self.workers[-1]

    def serve(self, ours: Connection, theirs: Connection, driver: int) -> None:
        for connection in (ours, *(worker.connection for worker in self.workers)):
            connection.close()  # or none would ever break
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        end_with(driver)
        with suppress(EOFError):
            while (job := theirs.recv()) is not None:
                outcome = work(job, stopping=theirs.poll, by=self.by)
                try:
                    theirs.send(outcome)
                except (TypeError, AttributeError) as error:
                    theirs.send(f"cannot pickle: {error}")

    def tell(self) -> None:
        for worker in self.busy():
            with suppress(BrokenPipeError):
                worker.connection.send(None)

    def news(self, worker: Worker) -> Report:
        job, worker.job = worker.job, None
        assert job is not None
        try:
            outcome = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            self.workers.remove(worker)
            worker.process.join()
            return Report(job=job, event="lost", traceback=f"exit code {worker.process.exitcode}")
        except Exception as error:
            return Report(job=job, event="raised", traceback=str(error))
        if isinstance(outcome, str):
            return Report(job=job, event="raised", traceback=outcome)
        return report_of(job, outcome)

    def close(self) -> None:
        while self.workers:
            worker = self.workers.pop()
            worker.connection.close()
            worker.process.kill()
            worker.process.join()


class TestForkEngine(EngineContract):
    def make(self, work: Work, *, at_a_time: int) -> Engine:
        return ForkEngine(work, at_a_time=at_a_time)

    # These start a driver anew, which takes seconds.
    test_an_interruption_ends_every_process = pytest.mark.slow(EngineContract.test_an_interruption_ends_every_process)
    test_a_killed_driver_takes_its_jobs_along = pytest.mark.slow(
        EngineContract.test_a_killed_driver_takes_its_jobs_along
    )


# --- and these do not pass


class Silent(ForkEngine):
    """Says nothing of the beginning."""

    def run(self, jobs: Sequence[Job]) -> Iterator[Report]:
        return (report for report in super().run(jobs) if report.event != "started")


class Forgetful(ForkEngine):
    """Loses sight of jobs."""

    def run(self, jobs: Sequence[Job]) -> Iterator[Report]:
        return super().run(jobs[:200])


class Backwards(ForkEngine):
    def run(self, jobs: Sequence[Job]) -> Iterator[Report]:
        return super().run(jobs[::-1])


class Patient(ForkEngine):
    """Tries again what was lost, as if the driver did not."""

    def run(self, jobs: Sequence[Job]) -> Iterator[Report]:
        for report in super().run(jobs):
            if report.event == "lost":
                list(ForkEngine(self.by, at_a_time=1).run([report.job]))
            yield report


class Greedy(ForkEngine):
    """Runs more at a time than it should."""

    def run(self, jobs: Sequence[Job]) -> Iterator[Report]:
        self.packing, before = 2 * self.packing, self.packing
        for report in super().run(jobs):
            self.packing = before
            yield report
            self.packing = 2 * before


class Copying(ForkEngine):
    """Reports on jobs that are equal to those that it got, and other objects."""

    def run(self, jobs: Sequence[Job]) -> Iterator[Report]:
        return super().run([replace(job) for job in jobs])


class Rounding(ForkEngine):
    def run(self, jobs: Sequence[Job]) -> Iterator[Report]:
        for report in super().run(jobs):
            if report.result:
                log = report.result.tables["log"]
                rounded = log["loss"].cast("float32").cast("float64")
                tables = {**report.result.tables, "log": log.set_column(2, "loss", rounded)}
                report = replace(report, result=replace(report.result, tables=tables))
            yield report


class OneWay(ForkEngine):
    """Can be used once."""

    used = False

    def run(self, jobs: Sequence[Job]) -> Iterator[Report]:
        jobs, self.used = [] if self.used else jobs, True
        return super().run(jobs)


class Curt(ForkEngine):
    """Does not tell of want of memory."""

    def run(self, jobs: Sequence[Job]) -> Iterator[Report]:
        return (replace(report, out_of_memory=False) for report in super().run(jobs))


class Strict(ForkEngine):
    """Takes what cannot be sent for a death."""

    def run(self, jobs: Sequence[Job]) -> Iterator[Report]:
        for report in super().run(jobs):
            unsent = report.event == "raised" and "pickle" in (report.traceback or "")
            yield replace(report, event="lost") if unsent else report


class Restless(ForkEngine):
    """Begins jobs although it was told to stop."""

    def tell(self) -> None:
        super().tell()
        self.stopping = False


class Abrupt(ForkEngine):
    """Stops without letting jobs end."""

    def tell(self) -> None:
        self.close()


class Leaky(ForkEngine):
    """Leaves processes behind, until the test is over."""

    def close(self) -> None:
        LEFT.extend(worker.process for worker in self.workers)
        OPEN.extend(worker.connection for worker in self.workers)  # without it a process would end
        self.workers.clear()


class Hoarding(ForkEngine):
    """Never gives one of its processes back."""

    def run(self, jobs: Sequence[Job]) -> Iterator[Report]:
        if jobs:
            LEFT.append(FORK.Process(target=signal.pause))
            LEFT[-1].start()
        return super().run(jobs)


class Talkative(ForkEngine):
    """Reports on what nobody gave it."""

    def run(self, jobs: Sequence[Job]) -> Iterator[Report]:
        yield from super().run(jobs)
        if not jobs:
            raise ValueError("no jobs")


LEFT: list[Any] = []
OPEN: list[Connection] = []


@pytest.fixture(autouse=True)
def _left_processes_end() -> Iterator[None]:
    yield
    while LEFT:
        process = LEFT.pop()
        process.kill()
        process.join()
    OPEN.clear()


@pytest.mark.parametrize(
    ("test", "engine", "said"),
    [
        ("test_no_jobs_are_no_news", Talkative, "no jobs"),
        ("test_every_job_starts_and_ends_once", Silent, "jobs were reported as"),
        ("test_every_job_starts_and_ends_once", Copying, "reports are of other jobs"),
        ("test_every_job_starts_and_ends_once", Hoarding, "in vain for processes .* to end"),
        ("test_many_jobs_all_end", Forgetful, "jobs were reported as"),
        ("test_jobs_begin_in_their_order", Backwards, r"reported as started: \[5, 4, 3, 2, 1, 0\]"),
        ("test_jobs_run_side_by_side", Greedy, "jobs went on at a time instead of 2|packing is 4"),
        ("test_half_as_many_at_a_time", Greedy, "jobs went on at a time instead of 1"),
        ("test_results_come_back_whole", Rounding, "log: other values came back"),
        ("test_an_engine_is_used_again", OneWay, "the engine reports nothing any more"),
        ("test_a_job_that_raises_stops_nobody", Curt, r"jobs \[\] were reported as out of memory"),
        ("test_a_job_whose_process_dies_is_lost", Patient, "jobs were tried again"),
        ("test_what_cannot_be_sent_back_is_told", Strict, "jobs were reported as"),
        ("test_stop_lets_jobs_end", Restless, r"jobs were reported as \{2: \['started'"),
        ("test_stop_lets_jobs_end", Abrupt, "jobs were reported as"),
        ("test_closing_ends_every_process", Leaky, "in vain for processes .* to end"),
    ],
)
def test_what_breaks_the_contract_is_found(test: str, engine: Callable[..., Engine], said: str) -> None:
    class TestMine(EngineContract):
        seconds = 1.0

        def make(self, work: Work, *, at_a_time: int) -> Engine:
            return engine(work, at_a_time=at_a_time)

    with pytest.raises((AssertionError, ValueError), match=said):
        getattr(TestMine(), test)()


def test_every_test_of_the_contract_was_made_to_fail() -> None:
    marks = test_what_breaks_the_contract_is_found.pytestmark  # type: ignore[attr-defined]
    assert {case[0] for mark in marks for case in mark.args[1]} == set(TESTS) - ENDED_FROM_OUTSIDE


def test_an_iterator_that_cannot_be_closed_is_told() -> None:
    class Listing(ForkEngine):
        def run(self, jobs: Sequence[Job]) -> Iterator[Report]:
            with closing(super().run(jobs)) as reports:  # type: ignore[type-var]
                return iter([next(reports)])

    class TestMine(EngineContract):
        def make(self, work: Work, *, at_a_time: int) -> Engine:
            return Listing(work, at_a_time=at_a_time)

    with pytest.raises(AssertionError, match="list_iterator, which cannot be closed; make it a generator"):
        TestMine().test_closing_ends_every_process()
