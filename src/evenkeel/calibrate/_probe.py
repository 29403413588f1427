"""Short trainings that are looked at step by step: for each seed one at a constant rate, and one at a rising rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from evenkeel.calibrate._arrays import Floats
from evenkeel.calibrate._rates import RisingRate, StopWhenExploded, rising_rates
from evenkeel.errors import PlanError
from evenkeel.measure import Recorded
from evenkeel.study import Plan, RunResult, Study, StudyFolder, execute, prepare
from evenkeel.study.engines import Job

__all__ = ["METHOD", "Budget", "Probe", "budget", "jobs_of", "probe", "steps_of_run"]

_FEWEST, _SHARE = 50, 0.1  # steps of a probe: at least so many, or that share of a run
_STEADY = 1 / 3  # share of them at the constant rate
METHOD = "full"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How many steps there are.

    Attributes:
        run: optimizer steps of one run of the plan.
        steady: steps of a probe at the constant rate.
        rising: steps of a probe at the rising rate.
    """

    run: int
    steady: int
    rising: int


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What was seen in the probes of S seeds.

    Attributes:
        seeds: the seeds, of head, order and dropout.
        budget: how many steps they had.
        reference: the constant rate, that of the published recipe.
        rates: learning rates of the range test, shape ``[K]``.
        losses: its losses, each seen before the step of its rate was made, shape ``[S, K]``; NaN from where the loss
            had exploded.
        steady: what was recorded at the constant rate, for each seed.
        rising: what was recorded in the range test, for each seed.
    """

    seeds: tuple[int, ...]
    budget: Budget
    reference: float
    rates: Floats
    losses: Floats
    steady: tuple[Recorded, ...]
    rising: tuple[Recorded, ...]


@final
class _EachStep(TrainerCallback):
    """Tells somebody of each step."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._tell()


def budget(run: int) -> Budget:
    """Divide the steps of a probe: a tenth of a run's, or 50 where that is more; a third of them at the constant rate.

    Args:
        run: optimizer steps of one run.

    Returns:
        The steps.

    Example:
        >>> budget(189), budget(1602)
        (Budget(run=189, steady=17, rising=33), Budget(run=1602, steady=54, rising=107))
    """
    steps = max(_FEWEST, math.ceil(run * _SHARE))
    steady = round(steps * _STEADY)
    return Budget(run=run, steady=steady, rising=steps - steady)


def jobs_of(plan: Plan) -> list[Job]:
    """Load and check everything that the probes need; nothing is trained or written.

    Args:
        plan: one task, one model, one recipe, the method ``full``, and the seeds.

    Returns:
        One job for each seed.

    Raises:
        EvenkeelError: if task or model cannot be used, or there is more than one of them.
    """
    if len(plan.tasks) != 1 or len(plan.models) != 1 or plan.methods != (METHOD,) or len(plan.recipes()) != 1:
        raise PlanError(
            f"a calibration is of one model on one task, by the method {METHOD} and one recipe, but the plan has "
            f"{len(plan.tasks)} tasks, {len(plan.models)} models, the methods {', '.join(plan.methods)} and "
            f"{len(plan.recipes())} recipes; calibrate each pair on its own"
        )
    return Study(plan, StudyFolder(Path())).jobs()


def steps_of_run(job: Job) -> int:
    """Return how many optimizer steps a run of the method ``full`` has.

    Args:
        job: the run.

    Returns:
        The number.
    """
    training = job.spec.training
    examples = len(prepare(job.task, job.model, training.max_length).parts["train"])
    return math.ceil(math.ceil(examples / training.batch_size) * training.epochs)


def probe(
    jobs: Sequence[Job],
    *,
    lowest: float = 1e-6,
    highest: float = 1e-1,
    on_step: Callable[[], None] = lambda: None,
) -> Probe:
    """Train twice for each seed, and record every component at every step.

    Once at the constant rate of the recipe, which shows the gradients that a training meets before anything has gone
    wrong; and once, from the same weights and in the same order of the data, at a rate that rises exponentially, until
    its loss explodes (:class:`StopWhenExploded`).

    Args:
        jobs: one run for each seed, of one task and model, by the method ``full``; the recipe's rate is the constant
            one, its schedule and warm-up are left out.
        lowest: the rate that the range test begins with.
        highest: the rate that it ends with.
        on_step: is called after each step.

    Returns:
        What was seen.

    Raises:
        MeasureError: if the rates cannot rise from the lowest to the highest.
        EvenkeelError: if data or model were changed since the jobs were made.
    """
    steps = budget(steps_of_run(jobs[0]))
    reference = jobs[0].spec.training.learning_rate
    rates = rising_rates(lowest, highest, steps.rising)
    steady, rising = list[RunResult](), list[RunResult]()
    for job in jobs:
        steady.append(_trained(job, np.full(steps.steady, reference), on_step))
        rising.append(_trained(job, rates, on_step))
    return Probe(
        seeds=tuple(job.spec.seed for job in jobs),
        budget=steps,
        reference=reference,
        rates=rates,
        losses=np.stack([_losses(result, steps.rising) for result in rising]),
        steady=tuple(Recorded.of(result.tables["telemetry"]) for result in steady),
        rising=tuple(Recorded.of(result.tables["telemetry"]) for result in rising),
    )


def _trained(job: Job, rates: Floats, on_step: Callable[[], None]) -> RunResult:
    """Train as many steps as there are rates; what ``execute`` adds is an evaluation."""
    training = job.spec.training.model_copy(update={"record_every": 1, "schedule": "constant", "warmup": 0.0})
    overrides = {**job.spec.overrides, "max_steps": len(rates), "logging_steps": 1}
    spec = job.spec.model_copy(update={"training": training, "overrides": overrides})
    callbacks = [RisingRate(rates), StopWhenExploded(), _EachStep(on_step)]
    return execute(spec, job.task, model=job.model, callbacks=callbacks)


def _losses(result: RunResult, steps: int) -> Floats:
    """Return the loss of each step; NaN from where the training ended, or its loss was no number."""
    seen = result.tables["log"]["loss"].to_numpy()
    return np.concatenate([seen, np.full(steps - len(seen), np.nan)])
