"""A worker process and the pipe to it, seen from both ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import final

from evenkeel._process import how_it_ended, run_below
from evenkeel.study._private import private_traceback
from evenkeel.study.engines._contract import Job, Report
from evenkeel.study.engines._gpus import VISIBLE
from evenkeel.study.engines._work import Raised, Work, report_of, settle, work

__all__ = ["Worker", "serve"]

_END_SECONDS = 5.0  # for a worker to follow SIGTERM
_BROKEN = (BrokenPipeError, ConnectionResetError, EOFError)


@final
class Worker:
    """A persistent process that executes one job at a time; imports, data and tokens stay loaded in it.

    Attributes:
        job: what it executes; None while it waits.
        connection: where news of it comes from; readable also when it died.
        gpu: the only one that it sees; None lets it see what the driver does.
    """

    def __init__(self, by: Work, *, threads: int, gpu: str | None = None) -> None:
        """Start the process, which executes jobs ``by`` that function on so many threads.

        It inherits that Ctrl-C is blocked: that is the driver's to answer.
        """
        self.job: Job | None = None
        self.gpu = gpu
        self._asked_to_stop = False
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=run_below, args=(os.getpid(), __name__, "serve", theirs))
        with _without_interrupts():
            self._process.start()
        theirs.close()  # so that the end of the process ends the connection
        with suppress(*_BROKEN):  # a dead process is found out with its first job
            self.connection.send((threads, gpu))
            self.connection.send(by)  # not by its arguments: what it must import for them may take long

    def give(self, job: Job) -> bool:
        """Hand it a job; False if the process turns out to be dead."""
        try:
            self.connection.send(job)
        except _BROKEN:
            return False
        self.job = job
        return True

    def ask_to_stop(self) -> None:
        """Let its job stop at a checkpoint where it keeps any, and the process end after the job."""
        if not self._asked_to_stop:
            self._asked_to_stop = True
            with suppress(*_BROKEN):  # what became of it is read elsewhere
                self.connection.send(None)

    def news(self, job: Job) -> Report:
        """Return what came of ``job``, which is then off its hands; to be called once its connection is readable."""
        self.job = None
        try:
            return report_of(job, self.connection.recv())
        except (*_BROKEN, OSError):  # or a part of a message, whose rest never comes
            self._process.join(_END_SECONDS)
            return Report(job=job, event="lost", traceback=f"its process {how_it_ended(self._process.exitcode)}")
        except Exception as error:  # whatever the loading of a strange object raises
            return report_of(job, Raised(traceback=private_traceback(error), out_of_memory=False))

    @property
    def alive(self) -> bool:
        """Whether it can be given a job."""
        return self._process.is_alive() and not self._asked_to_stop

    def end(self) -> None:
        """End the process at once: what it does is queued again by the next start."""
        self.connection.close()
        self._process.terminate()
        self._process.join(_END_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    resource_tracker.ensure_running()  # its own start would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve(connection: Connection) -> None:
    """Live a worker's life, until the driver says so or is gone.

    Args:
        connection: what executes jobs comes from there, then jobs; and what came of them goes there.
    """
    with suppress(*_BROKEN, OSError):  # nobody is there any more
        threads, gpu = connection.recv()
        if gpu is not None:  # before anything of it is imported that might look for GPUs
            os.environ[VISIBLE] = gpu
        by = connection.recv()
        settle(threads)
        while (job := connection.recv()) is not None:
            outcome = work(job, stopping=connection.poll, by=by)  # whatever comes while it works, asks it to stop
            try:
                connection.send(outcome)
            except (*_BROKEN, OSError):
                raise
            except Exception as error:  # it cannot be pickled, which is found out before anything was sent
                connection.send(Raised(traceback=private_traceback(error), out_of_memory=False))
