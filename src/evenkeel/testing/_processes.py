"""Which processes there are, as Linux tells it."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

__all__ = ["alive", "children"]

_PROC = Path("/proc")
_HELPER = b"multiprocessing.resource_tracker"  # one for each process that starts others, until that one ends


def alive(process: int) -> bool:
    """Tell whether a process runs; one that has ended and was not waited for does not.

    Args:
        process: its id.

    Returns:
        Whether it runs.
    """
    return _state(process)[0] not in ("", "Z", "X")


def children(*, of: int | None = None, besides: Collection[int] = ()) -> set[int]:
    """Return the processes that run and were started by a process, or by those that it started.

    Args:
        of: the process; None takes this one.
        besides: processes to leave out.

    Returns:
        Their ids, without Python's own helper for shared resources.
    """
    parents = {int(entry.name): _state(int(entry.name))[1] for entry in _PROC.iterdir() if entry.name.isdigit()}
    found, wanted = set[int](), {of or os.getpid()}
    while wanted:
        wanted = {process for process, parent in parents.items() if parent in wanted}
        found |= wanted
    return {process for process in found - set(besides) if alive(process) and not _helps(process)}


def _state(process: int) -> tuple[str, int]:
    """Return a process's state and its parent."""
    with suppress(OSError):
        after_name = (_PROC / str(process) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
        state, parent = after_name.split()[:2]
        return state, int(parent)
    return "", 0


def _helps(process: int) -> bool:
    with suppress(OSError):
        return _HELPER in (_PROC / str(process) / "cmdline").read_bytes()
    return False
