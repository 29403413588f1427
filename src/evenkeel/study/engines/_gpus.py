"""The GPUs of this machine, and how many runs share one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, final

import torch

from evenkeel.errors import PlanError
from evenkeel.study._plan import Resources

__all__ = ["VISIBLE", "Gpus"]

VISIBLE: Final = "CUDA_VISIBLE_DEVICES"  # ROCm's torch reads it, too
_USABLE = 0.9  # of a GPU's memory: peaks of runs that nobody has seen yet may be higher
_CONTEXT_BYTES = 600 * 2**20  # of a process, beside what torch counts


@final
class Gpus:
    """The GPUs that this process may use; each run is on one of them alone, or has one for each of its processes.

    Attributes:
        names: of what a run may have, as ``CUDA_VISIBLE_DEVICES`` has it: a GPU, or several with commas between them;
            empty where there are none.
        per_gpu: how many runs share one now.
    """

    def __init__(self, resources: Resources) -> None:
        """Look for GPUs, unless runs are to have none; ``auto`` begins with one run on each, until one was measured.

        Args:
            resources: of each run.

        Raises:
            PlanError: if a process is to have several, or a run has more processes than there are GPUs.
        """
        if resources.gpus and resources.gpus > 1:
            raise PlanError(
                f"resources.gpus: the local engine gives each run one GPU, and {resources.gpus:g} were asked for; take "
                "1 or a share of one"
            )
        self._hidden = resources.gpus == 0
        self.names = [] if self._hidden else _shared_out(_names(), resources.processes_per_run)
        self.per_gpu = 1 if resources.sharing == "auto" else resources.sharing
        self._measuring, self._largest = resources.sharing == "auto" and bool(self.names), 0

    @property
    def room(self) -> int:
        """How many runs all of them hold."""
        return len(self.names) * self.per_gpu

    def fewest(self, taken: Sequence[str | None]) -> str | None:
        """Choose the GPU with the fewest runs.

        Args:
            taken: the GPU of each process that is there.

        Returns:
            Its name; none of them, ``""``, where runs are to have none; None where there are none.
        """
        load = Counter(taken)
        return min(self.names, key=lambda name: load[name], default="" if self._hidden else None)

    def learn(self, peak_memory: Mapping[str, int]) -> bool:
        """Take note of the memory that a run took.

        Args:
            peak_memory: bytes by place, as runs record them.

        Returns:
            Whether another number of runs share a GPU from now on: as many as the largest run so far fits in.
        """
        peak = peak_memory.get("device_reserved")
        if not self._measuring or not peak:
            return False
        self._largest = max(self._largest, peak)
        before, smallest = self.per_gpu, min(_memory(place) for place in range(len(self.names)))
        self.per_gpu = max(1, int(_USABLE * smallest / (self._largest + _CONTEXT_BYTES)))
        return self.per_gpu != before

    def settle(self) -> None:
        """Measure no more: memory ran out, and the driver has said what there is room for."""
        self._measuring = False


def _shared_out(names: Sequence[str], processes: int) -> list[str]:
    """Put GPUs together for runs of several processes; what is left over stays idle."""
    if names and len(names) < processes:
        raise PlanError(
            f"resources.processes_per_run: each of the {processes} processes of a run has a GPU to itself, and there "
            f"are {len(names)} here; ask for fewer, or let gpus be 0"
        )
    last = len(names) - processes
    return [",".join(names[start : start + processes]) for start in range(0, last + 1, processes)]


def _names() -> list[str]:
    if not torch.cuda.is_available():
        return []
    count = torch.cuda.device_count()
    named = [name for name in os.environ.get(VISIBLE, "").split(",") if name]
    return named[:count] if named else [str(place) for place in range(count)]


def _memory(place: int) -> int:
    return int(torch.cuda.get_device_properties(place).total_memory)
