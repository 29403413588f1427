"""What an engine is: it takes jobs and reports on each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from evenkeel.study._checkpoints import Checkpointing
from evenkeel.study._execute import RunResult
from evenkeel.study._plan import Measures, RunSpec, TaskPlan

__all__ = ["Engine", "Event", "Job", "Report"]

Event = Literal["started", "ended", "raised", "lost", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run and what a process needs to execute it.

    Attributes:
        spec: the run.
        task: where its data is.
        model: where its model is.
        measures: what it measures beside what every run records.
        checkpoints: where and how often it keeps a checkpoint; None keeps none. The folder belongs to the driver's
            machine: an engine whose processes do not see it leaves this out.
        inputs: a folder that the task's data and tokens were written to; None lets the process make them itself. It
            belongs to the driver's machine: a process that does not see it is told by ``inputs_come_from``.
    """

    spec: RunSpec
    task: TaskPlan
    model: str
    measures: Measures = field(default_factory=Measures)
    checkpoints: Checkpointing | None = None
    inputs: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """News of a job.

    Attributes:
        job: which one.
        event: ``started``; ``ended``, with a result; ``raised``, with a traceback; ``lost``, its process died;
            ``stopped``, it left a checkpoint because the engine was told to stop.
        result: of an ended job.
        traceback: of a job that raised; of a lost one, how its process ended, where that is known.
        out_of_memory: whether it raised because there was no memory left.
        instead: what the driver puts in the job's place; engines leave it out.
    """

    job: Job
    event: Event
    result: RunResult | None = None
    traceback: str | None = None
    out_of_memory: bool = False
    instead: Job | None = None


class Engine(ABC):
    """Executes jobs, several at a time.

    It never tries a job again: the driver counts attempts, and hands over again what is worth it.

    Attributes:
        packing: how many jobs run at a time and share the memory of a device, or of the machine; looked at before
            every job that begins.
        stopping: whether no more jobs are to begin; looked at within seconds.
    """

    packing: int = 1
    stopping: bool = False

    def halve(self) -> None:
        """Begin with half as many jobs at a time from now on; what runs goes on. One stays one."""
        self.packing = max(1, self.packing // 2)

    def stop(self) -> None:
        """Begin no more jobs; what runs ends, or stops at its next checkpoint where it keeps any.

        It may be called by a signal handler while somebody iterates over ``run``, and only notes what is wanted; the
        next call of ``run`` begins afresh.
        """
        self.stopping = True

    @abstractmethod
    def run(self, jobs: Sequence[Job]) -> Iterator[Report]:
        """Execute all jobs, in about their order.

        Every job that begins is reported as started before anything else of it, and ends in one of the other events.
        Closing the iterator stops what is running, at once; such jobs are not reported on again.

        Args:
            jobs: the jobs.

        Yields:
            News as it comes.
        """
