"""What a process does for an engine: one job at a time, and everything that can come of it as a value."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from evenkeel.study._checkpoints import RunStopped
from evenkeel.study._execute import RunResult, execute
from evenkeel.study._private import private_traceback
from evenkeel.study._quiet import quieten
from evenkeel.study.engines._contract import Job, Report
from evenkeel.study.engines._launch import RankError, RankLostError, launch

__all__ = [
    "Lost",
    "Outcome",
    "Raised",
    "RunStopped",
    "Stopped",
    "Work",
    "execute_job",
    "no_memory",
    "report_of",
    "settle",
    "work",
]

_NO_MEMORY = ("can't allocate memory", "out of memory")  # torch says so on devices that have no error of their own


@dataclass(frozen=True, kw_only=True)
class Raised:
    """An exception as text, since not every exception can be sent to another process.

    Attributes:
        traceback: where and what; no path of the machine's owner.
        out_of_memory: whether there was no memory left.
    """

    traceback: str
    out_of_memory: bool


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """A job left a checkpoint and stopped, because it was asked to."""


@dataclass(frozen=True, kw_only=True)
class Lost:
    """One of the processes of a job died, and this one did not.

    Attributes:
        reason: how it ended.
    """

    reason: str


Outcome = RunResult | Raised | Stopped | Lost

Work = Callable[[Job, Callable[[], bool]], RunResult]  # raises RunStopped soon after the function said yes


def execute_job(job: Job, stopping: Callable[[], bool]) -> RunResult:
    """Execute a job's run: what an engine does with jobs unless it is told otherwise.

    A run that several processes share is launched below this one, which waits.

    Args:
        job: the job.
        stopping: asked now and then; once it says yes, a run that keeps checkpoints leaves one and stops.

    Returns:
        Its result.

    Raises:
        RunStopped: if it stopped.
        RankError: if one of its processes raised an exception.
        RankLostError: if one of its processes died.
    """
    if job.spec.processes > 1:
        return launch(job.spec.processes, _executed, job)
    return _executed(job, stopping)


def _executed(job: Job, stopping: Callable[[], bool] = lambda: False) -> RunResult:
    return execute(
        job.spec,
        job.task,
        model=job.model,
        measures=job.measures,
        checkpointing=job.checkpoints,
        inputs=job.inputs,
        stopping=stopping,
    )


def settle(threads: int = 1) -> None:
    """Prepare a worker process: few threads, no chatter, garbage collections that leave the libraries alone."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    quieten()
    torch.set_num_threads(threads)
    gc.freeze()  # the Trainer collects garbage again and again: let it look at the runs' objects, not at the libraries'


def work(job: Job, *, stopping: Callable[[], bool] = lambda: False, by: Work = execute_job) -> Outcome:
    """Execute a job.

    Args:
        job: the job.
        stopping: asked now and then; once it says yes, a job that keeps checkpoints leaves one and stops.
        by: what executes it.

    Returns:
        Its result; or what it raised; or that it stopped, or lost a process.
    """
    try:
        return by(job, stopping)
    except RunStopped:
        return Stopped()
    except RankLostError as error:
        return Lost(reason=str(error))
    except RankError as error:
        return Raised(traceback=error.traceback, out_of_memory=error.out_of_memory)
    except Exception as error:
        raised = Raised(traceback=private_traceback(error), out_of_memory=no_memory(error))
    if raised.out_of_memory:  # by now the frames that held the tensors are gone
        _free()
    return raised


def no_memory(error: BaseException) -> bool:
    """Say whether an exception means that there was no memory left.

    Args:
        error: the exception.

    Returns:
        Whether it does.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def _free() -> None:
    """Give memory back that a run has left behind: its neighbours need it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def report_of(job: Job, outcome: Outcome) -> Report:
    """Say what came of a job.

    Args:
        job: the job.
        outcome: what :func:`work` returned.

    Returns:
        The report.
    """
    if isinstance(outcome, Stopped):
        return Report(job=job, event="stopped")
    if isinstance(outcome, Lost):
        return Report(job=job, event="lost", traceback=outcome.reason)
    if isinstance(outcome, Raised):
        return Report(job=job, event="raised", traceback=outcome.traceback, out_of_memory=outcome.out_of_memory)
    return Report(job=job, event="ended", result=outcome)
