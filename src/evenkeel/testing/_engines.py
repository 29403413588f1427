"""The suite that every engine passes."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from evenkeel.study import RunResult
from evenkeel.study.engines import Engine, Report, Work
from evenkeel.testing._processes import alive, children
from evenkeel.testing._scripted import FEW, MUCH, Act, Scripted, jobs_of, result_of
from evenkeel.testing._stage import check

__all__ = ["EngineContract"]


_START_SECONDS = 240.0  # for a process to start on a machine that has much else to do


class EngineContract(ABC):
    """Tests that an engine passes if it keeps to the contract of ``evenkeel.study.engines.Engine``.

    Subclass it in a test file, at the top of a module and under a name that your test runner collects, and say how the
    engine is made. Jobs do not train: the engine is given what it is to do with them, which acts out a script. Its
    processes must see the folder for temporary files.

    Attributes:
        seconds: how long processes may take to end once they are to, and to notice that they are to stop.
        many: how many jobs there are where there are many.

    Example:
        >>> from evenkeel.study.engines import LocalEngine
        >>> class TestMine(EngineContract):
        ...     def make(self, work, *, at_a_time):
        ...         return LocalEngine(workers=at_a_time, work=work)
        >>> TestMine().test_no_jobs_are_no_news()
    """

    seconds: ClassVar[float] = 30.0
    many: ClassVar[int] = 500

    @abstractmethod
    def make(self, work: Work, *, at_a_time: int) -> Engine:
        """Return a new engine that does ``work`` with its jobs, so many at a time."""

    # --- jobs that go well

    def test_no_jobs_are_no_news(self) -> None:
        """Nothing to do is nothing to report."""
        with _script() as script:
            reports = list(self.make(script, at_a_time=1).run([]))
            check(reports == [], f"there were no jobs, and reports came: {reports}")

    def test_every_job_starts_and_ends_once(self) -> None:
        """Each job is reported as started, then as ended, and is the object that was given; no process is left."""
        before = children()
        with _script() as script:
            jobs = jobs_of(8)
            reports = list(self.make(script, at_a_time=2).run(jobs))
            _told(reports, ["ended"] * 8)
            check(all(report.job is jobs[report.job.spec.seed] for report in reports), "reports are of other jobs")
            check(sorted(script.begun()) == list(range(8)), f"began: {script.begun()}")
            self._gone(script.processes() | children(besides=before))

    def test_many_jobs_all_end(self) -> None:
        """However many there are, and however fast they end."""
        with _script() as script:
            _told(list(self.make(script, at_a_time=2).run(jobs_of(self.many))), ["ended"] * self.many)

    def test_jobs_begin_in_their_order(self) -> None:
        """One at a time, they begin as they were handed over."""
        with _script() as script:
            reports = list(self.make(script, at_a_time=1).run(jobs_of(6)))
            started = [report.job.spec.seed for report in reports if report.event == "started"]
            check(started == list(range(6)), f"reported as started: {started}")
            check(script.begun() == started, f"began: {script.begun()}")

    def test_jobs_run_side_by_side(self) -> None:
        """As many at a time as the engine was made for, and not more."""
        with _script({0: "wait-for-company", 1: "wait-for-company", **dict.fromkeys(range(2, 6), "pause")}) as script:
            engine = self.make(script, at_a_time=2)
            _told(list(engine.run(jobs_of(6))), ["ended"] * 6)
            check(engine.packing == 2, f"the engine was made for 2 at a time, and packing is {engine.packing}")
            check(script.most_at_a_time() == 2, f"{script.most_at_a_time()} jobs went on at a time instead of 2")

    def test_half_as_many_at_a_time(self) -> None:
        """After ``halve`` half as many jobs go on at a time; one stays one."""
        with _script(dict.fromkeys(range(4), "pause")) as script:
            engine = self.make(script, at_a_time=2)
            engine.halve()
            check(engine.packing == 1, f"half of 2 is {engine.packing}")
            engine.halve()
            check(engine.packing == 1, f"half of 1 is {engine.packing}")
            _told(list(engine.run(jobs_of(4))), ["ended"] * 4)
            check(script.most_at_a_time() == 1, f"{script.most_at_a_time()} jobs went on at a time instead of 1")

    def test_results_come_back_whole(self) -> None:
        """Every bit of every table, whatever its types, and every value of the outcome; also what no pipe holds."""
        with _script({1: "return-much"}) as script:
            reports = list(self.make(script, at_a_time=1).run(jobs_of(3)))
            _told(reports, ["ended"] * 3)
            for report in reports:
                if report.result:
                    seed = report.job.spec.seed
                    _same_result(report.result, result_of(seed, rows=MUCH if seed == 1 else FEW))

    def test_an_engine_is_used_again(self) -> None:
        """After jobs that ended, and after jobs that were broken off."""
        with _script({7: "wait"}) as script:
            engine = self.make(script, at_a_time=1)
            _told(list(engine.run(jobs_of(2))), ["ended"] * 2)
            with _closing(engine.run(jobs_of(8)[7:])) as reports:
                check(next(reports, None) is not None, "the engine reports nothing any more")
            _told(list(engine.run(jobs_of(2))), ["ended"] * 2)

    # --- jobs that go wrong

    def test_a_job_that_raises_stops_nobody(self) -> None:
        """It is reported with its traceback, whatever its exception is, and want of memory as such; the others end."""
        acts: dict[int, Act] = {1: "raise", 2: "raise-what-cannot-be-sent", 3: "run-out-of-memory"}
        with _script(acts) as script:
            reports = list(self.make(script, at_a_time=1).run(jobs_of(5)))
            _told(reports, ["ended", "raised", "raised", "raised", "ended"])
            said = {report.job.spec.seed: report.traceback or "" for report in reports if report.event == "raised"}
            check("ZeroDivisionError: job 1 was told to raise" in said[1], f"the traceback is {said[1]!r}")
            check("_scripted.py" in said[1], f"the traceback does not tell where: {said[1]!r}")
            check("_StrangeError: 2 and 2" in said[2], f"the traceback is {said[2]!r}")
            told = [report.job.spec.seed for report in reports if report.out_of_memory]
            check(told == [3], f"jobs {told} were reported as out of memory, and job 3 was")

    def test_a_job_whose_process_dies_is_lost(self) -> None:
        """It is reported as lost, with what is known of its end, and is not tried again; the others end."""
        with _script({1: "be-killed", 3: "exit"}) as script:
            reports = list(self.make(script, at_a_time=2).run(jobs_of(6)))
            _told(reports, ["ended", "lost", "ended", "lost", "ended", "ended"])
            check(all(report.traceback for report in reports if report.event == "lost"), "a loss has no reason")
            check(sorted(script.begun()) == list(range(6)), f"jobs were tried again: {sorted(script.begun())}")

    def test_what_cannot_be_sent_back_is_told(self) -> None:
        """A result that cannot be pickled, or not be read, is the job's failure and nobody else's."""
        with _script({0: "return-what-cannot-be-sent", 1: "return-what-cannot-be-read"}) as script:
            reports = list(self.make(script, at_a_time=1).run(jobs_of(3)))
            _told(reports, ["raised", "raised", "ended"])
            said = [report.traceback or "" for report in reports if report.event == "raised"]
            check("pickle" in said[0] and "cannot be read back" in said[1], f"the tracebacks are {said}")

    # --- ends before the end

    def test_stop_lets_jobs_end(self) -> None:
        """What runs ends or stops where it can; what waits is not begun, and not reported on."""
        with _script({0: "wait", 1: "pause"}) as script:
            engine = self.make(script, at_a_time=2)
            reports = list[Report]()
            for report in engine.run(jobs_of(6)):
                reports.append(report)
                if [report.event for report in reports] == ["started"] * 2:
                    _until(lambda: len(script.begun()) == 2, _START_SECONDS, "two jobs to begin")
                    engine.stop()
            _told(reports, ["stopped", "ended"])
            check(sorted(script.begun()) == [0, 1], f"began: {script.begun()}")
            _told(list(engine.run(jobs_of(3)[2:])), ["ended"], first=2)  # the next call begins afresh

    def test_closing_ends_every_process(self) -> None:
        """Whoever closes the iterator in the middle finds no process of the engine left, nor news."""
        before = children()
        with _script(dict.fromkeys(range(2), "wait")) as script:
            with _closing(self.make(script, at_a_time=2).run(jobs_of(4))) as reports:
                events = [report.event for report in itertools.islice(reports, 2)]
                check(events == ["started"] * 2, f"the first reports were {events}")
                _until(lambda: len(script.begun()) == 2, _START_SECONDS, "two jobs to begin")
            check(next(reports, None) is None, "reports came after the end")
            self._gone(script.processes() | children(besides=before))

    def test_an_interruption_ends_every_process(self) -> None:
        """Ctrl-C reaches all processes of the terminal, and when the driver has ended, so have they."""
        everybody, workers = self._end_by(lambda driver: os.killpg(driver, signal.SIGINT))
        self._gone(everybody | workers)

    def test_a_killed_driver_takes_its_jobs_along(self) -> None:
        """The processes of jobs end themselves; what else there is of the engine may take longer."""
        _, workers = self._end_by(lambda driver: os.kill(driver, signal.SIGKILL))
        self._gone(workers)

    def _end_by(self, end: Callable[[int], None]) -> tuple[set[int], set[int]]:
        """Begin two jobs in a driver of their own, and end it; return all of its processes, and those of the jobs."""
        with _script(dict.fromkeys(range(2), "wait")) as script:
            driver = multiprocessing.get_context("spawn").Process(target=_drive, args=(self, script))
            driver.start()
            try:
                _until(lambda: len(script.begun()) == 2, _START_SECONDS, "two jobs to begin")
                everybody = children(of=driver.pid)
                end(driver.pid or 0)
                driver.join(self.seconds)
                check(driver.exitcode is not None, "the driver still runs")
            finally:
                driver.kill()
                driver.join()
            return everybody, script.processes()

    def _gone(self, processes: Collection[int]) -> None:
        _until(lambda: not any(map(alive, processes)), self.seconds, f"processes {sorted(processes)} to end")


def _drive(contract: EngineContract, script: Scripted) -> None:
    """Be a driver in a process of its own, with its own terminal, so to speak."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background hand down to ignore it
    with _closing(contract.make(script, at_a_time=2).run(jobs_of(2))) as reports:
        for _ in reports:
            pass


@contextmanager
def _script(acts: Mapping[int, Act] | None = None) -> Iterator[Scripted]:
    with tempfile.TemporaryDirectory(prefix="evenkeel-contract-", ignore_cleanup_errors=True) as folder:
        yield Scripted(folder=Path(folder), acts=acts or {})


def _closing(reports: Any) -> closing[Any]:
    kind = type(reports).__name__
    check(hasattr(reports, "close"), f"run returned a {kind}, which cannot be closed; make it a generator")
    return closing(reports)


def _told(reports: Collection[Report], ends: list[str], *, first: int = 0) -> None:
    """See that jobs, whose seeds count from ``first``, were each reported as started and then as ``ends`` has it."""
    events: dict[int, list[str]] = {}
    for report in reports:
        events.setdefault(report.job.spec.seed, []).append(report.event)
    wanted = {seed: ["started", end] for seed, end in enumerate(ends, start=first)}
    wrong = {seed: events.get(seed) for seed in {**events, **wanted} if events.get(seed) != wanted.get(seed)}
    check(not wrong, f"jobs were reported as {wrong} instead of {[wanted.get(seed) for seed in wrong]}")
    for report in reports:
        check((report.result is not None) == (report.event == "ended"), f"'{report.event}' with {report.result}")


def _same_result(got: RunResult, wanted: RunResult) -> None:
    check(got.diverged == wanted.diverged, f"diverged is {got.diverged}")
    check(dict(got.outcome) == dict(wanted.outcome), f"the outcome is {got.outcome} and was {wanted.outcome}")
    check(set(got.tables) == set(wanted.tables), f"there are the tables {set(got.tables)}")
    for name, table in wanted.tables.items():
        other = got.tables[name]
        check(other.schema.equals(table.schema), f"{name}: the schema is {other.schema} and was {table.schema}")
        same = all(map(_same_column, other.columns, table.columns))
        check(same, f"{name}: other values came back than were returned")


def _same_column(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    """Compare to the bit where there are numbers: NaN equals NaN, and -0.0 not 0.0."""
    if pa.types.is_floating(one.type):
        return bool(one.to_numpy().tobytes() == other.to_numpy().tobytes())
    return bool(one.equals(other))


def _until(good: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not good():
        check(time.monotonic() < deadline, f"waited {seconds:g} seconds in vain for {what}")
        time.sleep(0.05)
