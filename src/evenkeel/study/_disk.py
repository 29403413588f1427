"""The disk that checkpoints need, told before anything starts."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from evenkeel.models import skeleton
from evenkeel.study._checkpoints import checkpoint_bytes
from evenkeel.study._prepare import load_data, locate_model
from evenkeel.study.engines import Job

__all__ = ["checkpoint_disk", "disk_notice", "size"]


def checkpoint_disk(jobs: Sequence[Job], *, at_a_time: int, keep: bool) -> int:
    """Return about how much disk the checkpoints of a study take at most.

    A run has one checkpoint, and for a moment two: the next one is whole before the last one goes.

    Args:
        jobs: the runs that are to be done.
        at_a_time: how many run at a time.
        keep: whether the last checkpoint of each run is kept.

    Returns:
        Bytes.
    """
    largest = max((_size(job) for job in {(job.task, job.model): job for job in jobs}.values()), default=0)
    running = min(at_a_time, len(jobs))
    return largest * (running + (len(jobs) if keep else running))


def disk_notice(jobs: Sequence[Job], folder: Path, *, at_a_time: int, keep: bool) -> str:
    """Say what checkpoints take, and what there is.

    Args:
        jobs: the runs that are to be done.
        folder: where the checkpoints are kept; it need not exist.
        at_a_time: how many run at a time.
        keep: whether the last checkpoint of each run is kept.

    Returns:
        A sentence.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    needed, free = checkpoint_disk(jobs, at_a_time=at_a_time, keep=keep), shutil.disk_usage(there).free
    short = "" if needed < free else ", which is too little: free some, or keep fewer checkpoints"
    return f"checkpoints take up to about {size(needed)} on disk, and {size(free)} are free{short}"


def _size(job: Job) -> int:
    built = skeleton(locate_model(job.model), load_data(job.task).classes)
    return checkpoint_bytes(sum(parameter.numel() for parameter in built.parameters()))


def size(count: float) -> str:
    """Write a number of bytes.

    Args:
        count: bytes.

    Returns:
        Its text, in decimal units.

    Example:
        >>> size(812), size(24_300), size(3_460_000_000)
        ('812 bytes', '24 kB', '3.5 GB')
    """
    if count < 1000:
        return f"{count:.0f} bytes"
    power = min(4, int(math.log10(count) // 3))
    value = count / 1000**power
    return f"{value:.{0 if value >= 10 else 1}f} {('kB', 'MB', 'GB', 'TB')[power - 1]}"
