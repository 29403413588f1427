"""Another run in the place of one that ran out of memory: the same batch, in smaller parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from evenkeel.study._spec import RunSpec
from evenkeel.study.engines import Job

__all__ = ["replacement_notice", "smaller", "substituted"]

_ACCUMULATION = "gradient_accumulation_steps"


def smaller(spec: RunSpec) -> RunSpec | None:
    """Halve what a run holds in memory at a time; the examples of an optimizer step stay as many.

    Args:
        spec: the run.

    Returns:
        The other run, whose dropout draws differ; None where its parts cannot be halved.
    """
    accumulated = 2 * int(spec.overrides.get(_ACCUMULATION, 1))
    if spec.training.batch_size % (accumulated * spec.processes):
        return None
    overrides = {**spec.overrides, _ACCUMULATION: accumulated}
    return spec.model_copy(update={"overrides": dict(sorted(overrides.items()))})


def replacement_notice(spec: RunSpec, instead: RunSpec | None) -> str:
    """Say what ran out of memory, and what is done instead.

    Args:
        spec: the run.
        instead: what takes its place; None where nothing can.

    Returns:
        A sentence.
    """
    parts = spec.training.batch_size // int(spec.overrides.get(_ACCUMULATION, 1)) // spec.processes
    name = ", ".join((spec.task, spec.model, spec.method, spec.draw_in_words))
    ran = f"{name} ran out of memory alone, with {parts} examples at a time"
    if instead is None:
        return f"{ran}, and no run with half of that can take its place: it is recorded as an error"
    return (
        f"{ran}: another run takes its place, with {parts // 2} at a time and "
        f"{_ACCUMULATION} {instead.overrides[_ACCUMULATION]}"
    )


def substituted(jobs: Sequence[Job], taken: Mapping[str, RunSpec]) -> list[Job]:
    """Put the runs that took the place of planned ones there.

    Args:
        jobs: those that are planned.
        taken: what a store says: by the id of a planned run, what took its place.

    Returns:
        One job for each of ``jobs``. What the plan itself has stands for nothing else, and what is no smaller form of
        the planned run is not believed.
    """
    planned = {job.spec.id for job in jobs}
    found = []
    for job in jobs:
        instead = taken.get(job.spec.id)
        believed = instead is not None and instead.id not in planned and instead.id in map(_id, _smaller_ones(job.spec))
        found.append(replace(job, spec=instead) if instead is not None and believed else job)
    return found


def _smaller_ones(spec: RunSpec) -> Iterator[RunSpec]:
    one = smaller(spec)
    while one is not None:
        yield one
        one = smaller(one)


def _id(spec: RunSpec) -> str:
    return spec.id
