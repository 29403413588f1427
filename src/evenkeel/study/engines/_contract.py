"""What an engine is: it takes jobs and reports on each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from evenkeel.study._execute import RunResult
from evenkeel.study._plan import Measures, RunSpec, TaskPlan

__all__ = ["Engine", "Job", "Report"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run and what a process needs to execute it.

    Attributes:
        spec: the run.
        task: where its data is.
        model: where its model is.
        measures: what it measures beside what every run records.
    """

    spec: RunSpec
    task: TaskPlan
    model: str
    measures: Measures = field(default_factory=Measures)


@dataclass(frozen=True, kw_only=True)
class Report:
    """News of a job.

    Attributes:
        job: which one.
        event: ``started``; ``ended``, with a result; ``raised``, with a traceback; ``lost``, its process died.
        result: of an ended job.
        traceback: of a job that raised.
    """

    job: Job
    event: Literal["started", "ended", "raised", "lost"]
    result: RunResult | None = None
    traceback: str | None = None


class Engine(ABC):
    """Executes jobs, several at a time."""

    @abstractmethod
    def run(self, jobs: Sequence[Job]) -> Iterator[Report]:
        """Execute all jobs, in about their order.

        Every job is reported as started before anything else of it, and ends in one of the other events. Closing the
        iterator stops what is running; such jobs are not reported on again.

        Args:
            jobs: the jobs.

        Yields:
            News as it comes.
        """
