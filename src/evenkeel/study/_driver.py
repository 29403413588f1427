"""The driver's loop: hands runs to an engine, records what comes back, and decides what is tried again."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Literal, final

from evenkeel.study._execute import RunResult
from evenkeel.study._folder import StudyFolder
from evenkeel.study._smaller import replacement_notice, smaller
from evenkeel.study._store import Status, Store
from evenkeel.study.engines import Engine, Job, Report

__all__ = ["Driver"]

_MAX_LOST = 3  # attempts of a run whose process dies, in one start

_Again = Literal["together", "alone"]


@final
class Driver:
    """Drives an engine through the runs of a study; it alone writes the store, and it alone counts attempts.

    Attributes:
        stopping: whether no more runs are to begin.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        folder: StudyFolder,
        *,
        retries: int,
        smaller_batches: bool,
        keep_checkpoints: bool,
        on_notice: Callable[[str], None],
    ) -> None:
        """Set up the loop.

        Args:
            engine: where runs are executed.
            store: where they are recorded.
            folder: where their tables and checkpoints are.
            retries: how often a run that raised is tried again in this start.
            smaller_batches: whether a run that runs out of memory alone is replaced by one of smaller micro-batches.
            keep_checkpoints: whether the last checkpoint of a run that ended is kept.
            on_notice: is told, in a sentence, what the driver decided.
        """
        self._engine, self._store, self._folder = engine, store, folder
        self._retries, self._keep_checkpoints, self._on_notice = retries, keep_checkpoints, on_notice
        self._smaller_batches = smaller_batches
        self._lost, self._raised = Counter[str](), Counter[str]()
        self._packing: dict[str, int] = {}  # of running runs: how many there were to be at a time when they began
        self.stopping = False

    def stop(self) -> None:
        """Begin no more runs; those that run end, or stop at a checkpoint."""
        self.stopping = True
        self._engine.stop()
        self._on_notice(
            f"stopping: {len(self._packing)} running runs end first, or leave a checkpoint; Ctrl-C again stops at once"
        )

    def reports(self, jobs: Sequence[Job]) -> Generator[Report, None, None]:
        """Run jobs, and again those that are worth it; everything is recorded before it is passed on.

        A process that dies may take others with it. So the last attempt of a lost run is made alone: no run is given
        up for another's fault.

        Args:
            jobs: the jobs.

        Yields:
            What the engine reported, with what takes a job's place where something does.
        """
        batches = deque([list(jobs)] if jobs else [])
        while batches and not self.stopping:
            again: dict[_Again, list[Job]] = {"together": [], "alone": []}
            with closing(self._engine.run(batches.popleft())) as reports:  # type: ignore[type-var]  # they are generators
                for report in reports:
                    when, instead = self._record(report)
                    if when is not None:
                        again[when].append(instead or report.job)
                    yield replace(report, instead=instead) if instead else report
                    if self.stopping and not self._packing:
                        break  # also where the engine itself does not know how to stop
            batches.extend(batch for batch in (again["together"], *([job] for job in again["alone"])) if batch)

    def _record(self, report: Report) -> tuple[_Again | None, Job | None]:
        """Record a report; say whether its run is to be tried again, and how, and what takes its place."""
        run = report.job.spec.id
        if report.event == "started":
            self._packing[run] = self._engine.packing
            self._store.start(run)
            return None, None
        packing = self._packing.pop(run, 1)
        if report.result is not None:
            self._keep(run, report.result)
            return None, None
        if report.out_of_memory and packing == 1 and self._smaller_batches:
            instead = self._in_its_place(report.job)
            if instead is not None:
                return "together", instead
        status, when = self._verdict(report, packing)
        self._store.finish(run, status, error=report.traceback)
        return when, None

    def _keep(self, run: str, result: RunResult) -> None:
        """Record a result: the tables first, so that a run that is recorded has them."""
        self._folder.write_run(run, result.tables)
        scored: Status = "failed" if result.outcome.get("failed") else "done"
        self._store.finish(run, "diverged" if result.diverged else scored, outcome=result.outcome)
        if not self._keep_checkpoints:
            self._folder.drop_checkpoints(run)

    def _verdict(self, report: Report, packing: int) -> tuple[Status, _Again | None]:
        """Judge a run without a result: its status, and whether it is to be tried again."""
        run = report.job.spec.id
        if report.event == "stopped":
            return "queued", None
        if report.event == "lost":
            self._lost[run] += 1
            if self._lost[run] >= _MAX_LOST:
                return "lost", None
            return "queued", "together" if self._lost[run] < _MAX_LOST - 1 else "alone"
        if report.out_of_memory and packing > 1:
            self._make_room(packing)
            return "queued", "together"
        self._raised[run] += 1
        return ("queued", "together") if self._raised[run] <= self._retries else ("error", None)

    def _in_its_place(self, job: Job) -> Job | None:
        """Record another run, of smaller micro-batches, in the place of one that ran out of memory alone."""
        run, spec = job.spec.id, smaller(job.spec)
        if spec is not None and not self._store.substitute(run, spec):
            spec = None  # the plan has it as a run of its own
        self._on_notice(replacement_notice(job.spec, spec))
        if spec is None:
            return None
        self._folder.drop_checkpoints(run)
        kept = job.checkpoints and replace(job.checkpoints, folder=self._folder.checkpoints(spec.id))
        return replace(job, spec=spec, checkpoints=kept)

    def _make_room(self, packing: int) -> None:
        if self._engine.packing < packing:
            return  # another run, which began beside this one, has told of it before
        self._engine.halve()
        self._on_notice(f"out of memory with {packing} runs at a time: {self._engine.packing} at a time from now on")
