"""What a few real steps of a run take."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import pyarrow.parquet
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from evenkeel.methods import Mix, PhaseSchedule, parse_mix
from evenkeel.models import skeleton
from evenkeel.partition import components
from evenkeel.study._execute import RunResult, execute
from evenkeel.study._prepare import load_data, locate_model
from evenkeel.study._spec import RunSpec
from evenkeel.study.engines import Job, end_with, launch, settle

__all__ = ["Calibration", "calibrate", "calibrate_side_by_side", "mix_of", "steps_of"]

_FEWEST_STEPS = 8
_STEPS_OF_A_PHASE = 3  # whose steps cost what those of other phases do not
_LOG_ROWS = 60


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a few steps of one run took.

    Attributes:
        step_seconds: an optimizer step, on average over the phases of training.
        other_seconds: everything but steps: loading the model, evaluation.
        recorded_bytes: on disk, of what grows with the steps: one row of telemetry for each component.
        other_bytes: on disk, of everything else.
        memory: peak of the process in bytes.
    """

    step_seconds: float
    other_seconds: float
    recorded_bytes: float
    other_bytes: float
    memory: int


class _Clock(TrainerCallback):
    """Notes when training begins and when each step ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.times.append(time.perf_counter())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.times.append(time.perf_counter())


def calibrate(job: Job) -> Calibration:
    """Train a few steps of a run, evaluate it, and see what that took; nothing stays on the disk.

    The first step is left out: it compiles and allocates what later ones find.

    Args:
        job: the run.

    Returns:
        What it took.
    """
    return launch(job.spec.processes, _calibrated, job) if job.spec.processes > 1 else _calibrated(job)


def _calibrated(job: Job) -> Calibration:
    phases = len(mix_of(job.spec).phases(components(_model(job))))
    few = min(max(_FEWEST_STEPS, _STEPS_OF_A_PHASE * phases), max(2, steps_of(job)))
    training = job.spec.training.model_copy(update={"record_every": few - 1})  # records once, whatever the interval
    short = job.spec.model_copy(update={"overrides": {**job.spec.overrides, "max_steps": few}, "training": training})
    clock = _Clock()
    result = execute(short, job.task, model=job.model, callbacks=[clock])
    steps = [after - before for before, after in itertools.pairwise(clock.times)]
    # Of phases each its own share; else the median, which a neighbour that comes and goes does not move.
    step = statistics.fmean(steps[1:]) if phases > 1 else statistics.median(steps[1:])
    recorded, others = _bytes(result, len(steps))
    return Calibration(
        step_seconds=step,
        other_seconds=max(0.0, result.outcome["wall_seconds"] - sum(steps)),
        recorded_bytes=recorded,
        other_bytes=others,
        memory=int(result.outcome["peak_memory"]["host"]),
    )


def calibrate_side_by_side(jobs: Sequence[Job], *, workers: int) -> list[Calibration]:
    """Calibrate in processes like those of a study, as many at a time, so that they get in each other's way alike.

    Args:
        jobs: the runs.
        workers: processes at a time.

    Returns:
        What they took, in their order.
    """
    alone = range(len(jobs), workers)  # where there are too few, some are done again beside the others
    padded = [*jobs, *(jobs[i % len(jobs)] for i in alone)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(os.getpid(),)) as pool:
        return list(pool.map(calibrate, padded))[: len(jobs)]


def _begin(driver: int) -> None:
    settle()
    end_with(driver)
    Finalize(None, os._exit, args=(0,), exitpriority=-100)  # libraries complain of each other in an orderly end


def _bytes(result: RunResult, steps: int) -> tuple[float, float]:
    """Return the bytes of one recorded step, and of all other tables."""
    with tempfile.TemporaryDirectory() as scratch:
        sizes = {name: _size(table, Path(scratch) / name) for name, table in result.tables.items()}
        nothing = _size(result.tables["telemetry"].slice(0, 0), Path(scratch) / "nothing")
    recordings = len(set(result.tables["telemetry"]["step"].to_pylist()))
    log = sizes["log"] * _LOG_ROWS / max(_LOG_ROWS, steps)
    others = nothing + log + sum(size for name, size in sizes.items() if name not in ("telemetry", "log"))
    return max(0, sizes["telemetry"] - nothing) / max(1, recordings), others


def _size(table: pyarrow.Table, path: Path) -> int:
    pyarrow.parquet.write_table(table, path, compression="zstd")
    return os.path.getsize(path)


def steps_of(job: Job) -> int:
    """Return how many optimizer steps a run has, all phases of its training together.

    Args:
        job: the run.

    Returns:
        The number.
    """
    most = job.spec.overrides.get("max_steps", -1)
    if most > 0:
        return int(most)
    mix, training = mix_of(job.spec), job.spec.training
    epochs = mix.recipe().epochs or training.epochs
    whole = PhaseSchedule(mix.phases(components(_model(job))), epochs=epochs).total_epochs
    return math.ceil(math.ceil(len(load_data(job.task).train) / training.batch_size) * whole)


def mix_of(spec: RunSpec) -> Mix:
    """Return the methods of a run.

    Args:
        spec: the run.

    Returns:
        The mix.
    """
    return parse_mix(spec.method)


def _model(job: Job) -> Any:
    return skeleton(locate_model(job.model), load_data(job.task).classes)
