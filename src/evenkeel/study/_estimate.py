"""What a study takes, from a few real steps: time, disk, memory."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from evenkeel.study._calibrate import Calibration, mix_of, steps_of
from evenkeel.study._spec import RunSpec
from evenkeel.study.engines import Job

__all__ = ["Estimate", "Share", "estimate"]

_RECORD_BYTES = 3000  # of a run in the store
_REPORT_BYTES = 5e6  # most of the page is the library that draws its figures

Calibrate = Callable[[Sequence[Job]], Iterable[Calibration]]


@dataclass(frozen=True, kw_only=True)
class Share:
    """The part of a study that one method has on one task with one model and recipe.

    Attributes:
        example: one of its runs.
        runs: how many are to be done.
        steps: optimizer steps of each.
        step_seconds: an optimizer step.
        run_seconds: a whole run.
        run_bytes: a run's tables on disk.
        memory: of a process, in bytes.
    """

    example: RunSpec
    runs: int
    steps: int
    step_seconds: float
    run_seconds: float
    run_bytes: float
    memory: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a study takes.

    Attributes:
        shares: its parts, in the plan's order.
        seconds: all of it, with so many runs at a time as were said.
        disk: bytes of all tables, the store and the report.
        memory: bytes of the largest process.
    """

    shares: Sequence[Share]
    seconds: float
    disk: float
    memory: int


def estimate(jobs: Sequence[Job], *, workers: int, calibrated: Calibrate) -> Estimate:
    """Estimate what the runs take together.

    A few steps are trained for each task, model and recipe with its first method, and for each other method once: what
    its steps take beside those of the first one is assumed to be alike everywhere.

    Args:
        jobs: the runs that are to be done.
        workers: runs at a time.
        calibrated: calibrates jobs, and returns what they took in their order.

    Returns:
        The estimate.
    """
    counted = Counter(map(_share, jobs))
    examples = {_share(job): job for job in reversed(jobs)}
    places, ways = dict[str, Job](), dict[str, Job]()  # the first run of each
    for share in counted:
        places.setdefault(_place(examples[share]), examples[share])
        ways.setdefault(_way(examples[share]), examples[share])
    wanted = list({job.spec.id: job for job in (*places.values(), *ways.values())}.values())
    took = dict(zip((job.spec.id for job in wanted), calibrated(wanted), strict=True))
    shares = []
    for share, runs in counted.items():
        job = examples[share]
        base, way = took[places[_place(job)].spec.id], ways[_way(job)]
        factor = took[way.spec.id].step_seconds / max(1e-9, took[places[_place(way)].spec.id].step_seconds)
        shares.append(_estimated(job, runs, base, factor, took[way.spec.id].memory))
    return Estimate(
        shares=shares,
        seconds=sum(share.runs * share.run_seconds for share in shares) / max(1, workers),
        disk=sum(share.runs * (share.run_bytes + _RECORD_BYTES) for share in shares) + _REPORT_BYTES,
        memory=max((share.memory for share in shares), default=0),
    )


def _estimated(job: Job, runs: int, base: Calibration, factor: float, memory: int) -> Share:
    steps, step = steps_of(job), base.step_seconds * factor
    recordings = math.ceil(steps / job.spec.training.record_every)
    return Share(
        example=job.spec,
        runs=runs,
        steps=steps,
        step_seconds=step,
        run_seconds=steps * step + base.other_seconds,
        run_bytes=base.other_bytes + recordings * base.recorded_bytes,
        memory=max(base.memory, memory),
    )


def _share(job: Job) -> str:
    """Name the runs that differ by their seeds alone."""
    return f"{_place(job)} {job.spec.training!r} {job.spec.method}"


def _place(job: Job) -> str:
    """Name what a step's cost depends on, beside the method."""
    spec, recipe = job.spec, job.spec.training
    costs = [recipe.batch_size, recipe.max_length, recipe.precision, recipe.group_by_length]
    return json.dumps([spec.task, spec.model, spec.model_fingerprint, *costs, spec.overrides])


def _way(job: Job) -> str:
    """Name a method by its parts, whatever their options."""
    return mix_of(job.spec).name
