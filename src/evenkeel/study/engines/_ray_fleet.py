"""The processes that a study has on a Ray cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import final

from evenkeel.errors import EngineError
from evenkeel.study.engines._contract import Report
from evenkeel.study.engines._ray_cluster import import_ray, room_for
from evenkeel.study.engines._ray_slot import RaySlot, Setup

__all__ = ["Fleet"]

_MOST_FAILURES = 5  # of processes that are to start, without one that starts between them
_NODES_SECONDS = 1.0  # between two looks at the cluster's nodes


@final
class Fleet:
    """Slots that start, wait or work."""

    def __init__(self, setup: Setup) -> None:
        """Begin with none; ``setup`` is that of every process."""
        self._setup, self._slots = setup, list[RaySlot]()
        self._room, self._looked = 0, float("-inf")
        self._failures = 0

    @property
    def busy(self) -> list[RaySlot]:
        """Those that execute a job."""
        return [slot for slot in self._slots if slot.job is not None]

    @property
    def idle(self) -> list[RaySlot]:
        """Those that wait for one."""
        return [slot for slot in self._slots if slot.job is None and slot.here is not None]

    def fill(self, wanted: int) -> None:
        """Have so many slots, or as many as there is room for; end what is too many, though nothing that works.

        Args:
            wanted: how many.

        Raises:
            EngineError: if no node is large enough for one.
        """
        wanted = min(wanted, self._count_room())
        spare = [slot for slot in self._slots if slot.job is None]
        for slot in spare[max(0, len(spare) - max(0, len(self._slots) - wanted)) :]:
            self._drop(slot)
        while len(self._slots) < wanted:
            self._slots.append(RaySlot(self._setup))

    def _count_room(self) -> int:
        if time.monotonic() - self._looked < _NODES_SECONDS:
            return self._room
        self._room, self._looked = room_for(self._setup.resources), time.monotonic()
        if not self._room and not self.busy:
            cpus, gpus = self._setup.resources.run_cpus, self._setup.resources.run_gpus or 0
            raise EngineError(
                f"no node of the Ray cluster has room for a run of {cpus:g} cpus and {gpus:g} gpus; ask for less by "
                "resources in the plan, or add a node"
            )
        return self._room

    def news(self, seconds: float) -> Iterator[Report]:
        """Wait for news.

        Args:
            seconds: how long at most.

        Yields:
            What came of jobs that are over.

        Raises:
            EngineError: if processes cannot be started.
        """
        by_answer = {slot.news_from: slot for slot in self._slots if slot.news_from is not None}
        if not by_answer:
            time.sleep(seconds)  # until a node joins
            return
        wait = import_ray().wait
        if wait(list(by_answer), timeout=seconds)[0]:
            for answer in wait(list(by_answer), num_returns=len(by_answer), timeout=0)[0]:
                yield from self._news_of(by_answer[answer])

    def _news_of(self, slot: RaySlot) -> Iterator[Report]:
        if slot.job is None:
            self._begun(slot)
            return
        report = slot.news(slot.job)
        if report.event == "lost":
            self._drop(slot)  # to be sure: it may be alive and out of reach, and what it does is done again elsewhere
            self._looked = float("-inf")
        yield report

    def _begun(self, slot: RaySlot) -> None:
        reason = slot.begin()
        self._failures = self._failures + 1 if reason else 0
        if reason:
            self._drop(slot)
        if self._failures >= _MOST_FAILURES:
            raise EngineError(
                f"Ray starts no process for runs ({reason}); see that every node has the same Python and evenkeel"
            )

    def _drop(self, slot: RaySlot) -> None:
        self._slots.remove(slot)
        slot.end()

    def close(self) -> None:
        """End all processes at once."""
        for slot in self._slots:
            slot.end()
        self._slots.clear()
