"""Runs on this machine: one persistent, single-threaded process a core."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker

import joblib
import torch

from evenkeel.errors import PlanError
from evenkeel.study._execute import RunResult
from evenkeel.study._quiet import quieten
from evenkeel.study.engines._contract import Engine, Job, Report

__all__ = ["LocalEngine"]

_LOOK_FOR_PARENT_SECONDS = 1.0


class LocalEngine(Engine):
    """A pool of worker processes, made anew when one of them dies.

    A process that is killed takes the pool with it, so that every job that was running then is reported as lost.
    """

    def __init__(self, *, workers: int | None = None) -> None:
        """Set up the engine; processes start with the first job.

        Args:
            workers: how many runs go on at a time; None takes one for each core that this process may use, and one in
                all where there is a GPU.

        Raises:
            PlanError: if ``workers`` is not positive.
        """
        if workers is not None and workers < 1:
            raise PlanError(f"workers must be positive, but got {workers}; leave it out for one a core")
        # On a GPU, one: how many runs fit on it is not known here.
        self.workers = workers or (1 if torch.accelerator.is_available() else joblib.cpu_count())

    def run(self, jobs: Sequence[Job]) -> Iterator[Report]:
        """Execute all jobs; see :class:`Engine`."""
        waiting, running = deque(jobs), dict[Future[RunResult | str], Job]()
        pool = self._pool(len(jobs))
        try:
            while waiting or running:
                broken = False
                while waiting and len(running) < self.workers and not broken:
                    try:
                        future = _submit(pool, waiting[0])
                    except BrokenProcessPool:  # a process died while we were not looking
                        broken = True
                        continue
                    running[future] = waiting.popleft()
                    yield Report(job=running[future], event="started")
                reports = list(_collect(running)) if running else []
                if broken or any(report.event == "lost" for report in reports):
                    # The pool is broken: what else was running died with it.
                    reports += [Report(job=job, event="lost") for job in running.values()]
                    running.clear()
                    pool.shutdown(wait=True)
                    pool = self._pool(len(jobs))
                yield from reports
        finally:
            _stop(pool)

    def _pool(self, jobs: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            max_workers=max(1, min(self.workers, jobs)),
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(os.getpid(),),
        )


def _submit(pool: ProcessPoolExecutor, job: Job) -> Future[RunResult | str]:
    """Submit a job, which may start a process; it inherits that Ctrl-C is blocked, which is the driver's to answer."""
    resource_tracker.ensure_running()  # its own start would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(_work, job)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _collect(running: dict[Future[RunResult | str], Job]) -> Iterator[Report]:
    """Take the jobs that ended out of ``running``; wait for at least one."""
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        job = running.pop(future)
        try:
            found = future.result()
        except BrokenProcessPool:
            yield Report(job=job, event="lost")
            continue
        if isinstance(found, str):
            yield Report(job=job, event="raised", traceback=found)
        else:
            yield Report(job=job, event="ended", result=found)


def _stop(pool: ProcessPoolExecutor) -> None:
    """End the workers at once: what they are doing is queued again by the next start."""
    processes = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()


def _begin(driver: int) -> None:
    """Prepare a worker: one thread, no chatter, no life after the driver."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    quieten()
    torch.set_num_threads(1)
    gc.freeze()  # the Trainer collects garbage again and again: let it look at the runs' objects, not at the libraries'
    threading.Thread(target=_end_with, args=(driver,), daemon=True).start()


def _end_with(driver: int) -> None:
    while os.getppid() == driver:
        time.sleep(_LOOK_FOR_PARENT_SECONDS)
    os._exit(1)


def _work(job: Job) -> RunResult | str:
    """Execute a job; an exception comes back as its traceback, since not every exception can be pickled."""
    from evenkeel.study._execute import execute

    try:
        return execute(job.spec, job.task, model=job.model, measures=job.measures)
    except Exception:
        return traceback.format_exc()
