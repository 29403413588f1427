"""What a run takes: time by clocks that nobody sets, and memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import torch

__all__ = ["Meter", "Spent"]

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): sets the peak resident set size to what is resident now


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What was taken.

    Attributes:
        wall_seconds: time that passed.
        cpu_seconds: time of this process on all cores.
        peak_memory: the most bytes by place: ``host``, what of this process was in the machine's memory; on a GPU also
            ``device``, what tensors took there, and ``device_reserved``, what torch had set aside for them.
    """

    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: Spent) -> Spent:
        """Join two parts of a run, one after the other."""
        ours, theirs = self.peak_memory, other.peak_memory
        return Spent(
            wall_seconds=self.wall_seconds + other.wall_seconds,
            cpu_seconds=self.cpu_seconds + other.cpu_seconds,
            peak_memory={place: max(ours.get(place, 0), theirs.get(place, 0)) for place in {**ours, **theirs}},
        )


@final
class Meter:
    """Measures from when it is made; one at a time in a process, since the peak of the memory is the process's."""

    def __init__(self) -> None:
        """Begin."""
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        with suppress(OSError):  # not Linux, or not allowed: the peak is then that of the whole life of the process
            _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def spent(self) -> Spent:
        """Return what was taken since the beginning."""
        peak = {"host": _peak_on_host()}
        if torch.cuda.is_available():
            peak["device"] = torch.cuda.max_memory_allocated()
            peak["device_reserved"] = torch.cuda.max_memory_reserved()
        return Spent(
            wall_seconds=time.perf_counter() - self._wall,
            cpu_seconds=time.process_time() - self._cpu,
            peak_memory=peak,
        )


def _peak_on_host() -> int:
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
