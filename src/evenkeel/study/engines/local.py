"""Runs on this machine: one persistent, single-threaded process a core."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from typing import final

import joblib
import torch

from evenkeel.errors import PlanError
from evenkeel.study._plan import Resources
from evenkeel.study.engines._contract import Engine, Job, Report
from evenkeel.study.engines._gpus import Gpus
from evenkeel.study.engines._work import Work, execute_job
from evenkeel.study.engines._worker import Worker

__all__ = ["LocalEngine"]

_ONE_CORE = Resources()
_LOOK_SECONDS = 0.2  # how long a wish to stop may go unnoticed


@final
class LocalEngine(Engine):
    """Worker processes on this machine. One that dies takes its own job with it and no other; another takes its place.

    Attributes:
        packing: how many jobs run at a time.
    """

    def __init__(
        self, *, workers: int | None = None, resources: Resources = _ONE_CORE, work: Work = execute_job
    ) -> None:
        """Set up the engine; processes start with the first job.

        Args:
            workers: how many runs go on at a time; None takes as many as the cores that this process may use hold, and
                on GPUs no more than ``runs_per_gpu`` on each.
            resources: of each run; a process has as many threads as cores, and one where it shares a core. Each run has
                one GPU, where there are any, and ``runs_per_gpu`` says how many share it; or one for each of its
                processes.
            work: what is done with a job; it must be a function of a module, or another object that can be pickled.

        Raises:
            PlanError: if ``workers`` is not positive, or a process is to have several GPUs, or there are too few.
        """
        if workers is not None and workers < 1:
            raise PlanError(f"workers must be positive, but got {workers}; leave it out for one a core")
        self._work, self._threads, self._workers = work, resources.threads, workers
        self._cores = max(1, int(joblib.cpu_count() / resources.run_cpus))
        self._gpus = Gpus(resources)
        self.packing = workers or self._room()

    def _room(self) -> int:
        if self._gpus.names:
            return min(self._gpus.room, self._cores)
        other = torch.accelerator.is_available() and not torch.cuda.is_available()
        return 1 if other else self._cores  # of other accelerators nothing is known here

    def halve(self) -> None:
        """Begin with half as many jobs at a time from now on, whatever is measured later."""
        super().halve()
        self._gpus.settle()

    def run(self, jobs: Sequence[Job]) -> Iterator[Report]:
        """Execute all jobs; see :class:`Engine`."""
        self.stopping = False
        waiting, workers = deque(jobs), list[Worker]()
        try:
            while True:
                while waiting and not self.stopping and (worker := self._free(workers)):
                    if worker.give(waiting[0]):
                        yield Report(job=waiting.popleft(), event="started")
                busy = [worker for worker in workers if worker.job is not None]
                if not busy:
                    return  # all done, or told to stop
                if self.stopping:
                    for worker in busy:
                        worker.ask_to_stop()
                for report in _news(busy):
                    self._learn(report)
                    yield report
        finally:
            for worker in workers:
                worker.end()

    def _learn(self, report: Report) -> None:
        """Let more runs share a GPU, or fewer, by what this one took there."""
        took = report.result.outcome.get("peak_memory", {}) if report.result else {}
        if self._gpus.learn(took) and self._workers is None:
            self.packing = self._room()

    def _free(self, workers: list[Worker]) -> Worker | None:
        """Return a worker that waits, or a new one where there is room; end those that are dead or too many."""
        busy = [worker for worker in workers if worker.job is not None]
        idle = [worker for worker in workers if worker.job is None and worker.alive]
        room = max(0, self.packing - len(busy))
        kept = [*busy, *idle[:room]]
        for worker in workers:
            if worker not in kept:
                worker.end()
        workers[:] = kept
        if not room:
            return None
        if not idle:
            gpu = self._gpus.fewest([worker.gpu for worker in workers])
            workers.append(Worker(self._work, threads=self._threads, gpu=gpu))
        return workers[-1] if not idle else idle[0]


def _news(busy: Sequence[Worker]) -> Iterator[Report]:
    """Yield what came of jobs that are over; waits for a moment."""
    ready = wait([worker.connection for worker in busy], timeout=_LOOK_SECONDS)
    for worker in busy:
        if worker.job is not None and worker.connection in ready:
            yield worker.news(worker.job)
