"""Runs on a Ray cluster: one process for each run that its nodes have room for."""

from __future__ import annotations

import math
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import final

import joblib

from evenkeel.errors import PlanError
from evenkeel.study._plan import Resources
from evenkeel.study.engines._cargo import beacon
from evenkeel.study.engines._contract import Engine, Job, Report
from evenkeel.study.engines._ray_cluster import connected, import_ray, room_for, with_gpus
from evenkeel.study.engines._ray_fleet import Fleet
from evenkeel.study.engines._ray_hold import Hold
from evenkeel.study.engines._ray_slot import Setup
from evenkeel.study.engines._work import Work, execute_job

__all__ = ["RayEngine"]

_ONE_CORE = Resources()
_LOOK_SECONDS = 0.2  # how long a wish to stop may go unnoticed


@final
class RayEngine(Engine):
    """Ray actors, one for each run at a time, on a cluster that runs or on one of this machine alone.

    Ray's own retries are off: an actor that dies, or whose node does, takes its job with it, which is reported as lost;
    another takes its place on a node that has room. Data and models reach a machine that does not see the driver's
    files through Ray's object store, once. Results come back the same way; the driver alone writes the study's folder.

    Attributes:
        packing: how many jobs run at a time; known once the cluster is, unless it was told. Never more run than the
            cluster's nodes have room for.
    """

    def __init__(
        self,
        *,
        address: str | None = None,
        workers: int | None = None,
        resources: Resources = _ONE_CORE,
        work: Work = execute_job,
    ) -> None:
        """Set up the engine; a cluster is looked for, or started, when there are jobs.

        Args:
            address: of a cluster that runs, ``host:port``, or ``"auto"`` for the one that this machine is a node of;
                None starts one on this machine and stops it when all jobs are over. Where this process is connected
                to a cluster already, that one is taken.
            workers: how many runs go on at a time at most; None takes as many as the nodes hold in the beginning. Give
                more if nodes are going to join.
            resources: of each run.
            work: what is done with a job; a function of a module that every node has, or an object of such a class.

        Raises:
            MissingExtraError: if Ray is not installed.
            PlanError: if ``workers`` is not positive, or runs are to share GPUs by measurement.
        """
        import_ray()
        if workers is not None and workers < 1:
            raise PlanError(f"workers must be positive, but got {workers}; leave it out to fill the cluster")
        if resources.sharing == "auto":
            raise PlanError(
                "resources.runs_per_gpu: auto is measured by the local engine; on a Ray cluster say how many share "
                "a GPU"
            )
        self._address, self._workers, self._resources, self._work = address, workers, resources, work
        self.packing = workers or 1
        self._counted = workers is not None

    def run(self, jobs: Sequence[Job]) -> Iterator[Report]:
        """Execute all jobs; see :class:`Engine`.

        Args:
            jobs: the jobs.

        Yields:
            News as it comes.

        Raises:
            EngineError: if there is no cluster, no node has room for a run, or processes cannot be started.
        """
        self.stopping = False
        if not jobs:
            return
        with ExitStack() as stack:
            stack.enter_context(connected(self._address, cpus=self._cores()))
            setup = stack.enter_context(self._setup(jobs))
            if not self._counted:
                self.packing, self._counted = max(1, room_for(setup.resources)), True
            fleet = stack.enter_context(closing(Fleet(setup)))
            yield from self._through(deque(jobs), fleet, Hold())

    def _cores(self) -> int:
        """Return how many cores a cluster that we start has: what this process may use, or what was asked for."""
        return math.ceil(self._workers * self._resources.run_cpus) if self._workers else joblib.cpu_count()

    @contextmanager
    def _setup(self, jobs: Sequence[Job]) -> Iterator[Setup]:
        """Decide what the processes need to know, and light the beacons by which they see where they are."""
        kept = next((job.checkpoints.folder.parent for job in jobs if job.checkpoints), None)
        with ExitStack() as stack:
            if kept is not None:
                kept.mkdir(parents=True, exist_ok=True)
                stack.callback(_remove_if_empty, kept)
            yield Setup(
                by=self._work,
                resources=with_gpus(self._resources),
                beacon=stack.enter_context(beacon(Path(tempfile.gettempdir()))),
                checkpoints_beacon=stack.enter_context(beacon(kept)) if kept else None,
            )

    def _through(self, waiting: deque[Job], fleet: Fleet, hold: Hold) -> Iterator[Report]:
        while True:
            if not self.stopping:
                fleet.fill(min(self.packing, len(waiting) + len(fleet.busy)))
                for slot in fleet.idle:
                    if waiting and slot.here:
                        slot.give(waiting[0], hold.cargo(waiting[0], slot.here))
                        yield Report(job=waiting.popleft(), event="started")
            if not fleet.busy and (self.stopping or not waiting):
                return
            if self.stopping:
                for slot in fleet.busy:
                    slot.ask_to_stop()
            yield from fleet.news(_LOOK_SECONDS)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
