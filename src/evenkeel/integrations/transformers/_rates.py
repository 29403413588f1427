"""The learning-rate schedule of a training in phases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import SchedulerType, TrainingArguments, get_scheduler

from evenkeel.errors import MethodError
from evenkeel.methods import PhaseSchedule

__all__ = ["phased"]


def phased(plain: LRScheduler, schedule: PhaseSchedule, args: TrainingArguments, name: str) -> LambdaLR:
    """Make a schedule that starts anew with every phase that does.

    Args:
        plain: the schedule of a training without phases, of the optimizer that is to be scheduled.
        schedule: the phases.
        args: the training arguments.
        name: what an error calls the mix.

    Returns:
        The schedule.

    Raises:
        MethodError: if the kind of schedule cannot start anew.
    """
    if not isinstance(plain, LambdaLR):
        kind = SchedulerType(args.lr_scheduler_type).value
        raise MethodError(
            f"{name} trains in phases, and the schedule '{kind}' cannot start anew "
            "in each; use 'linear', 'cosine' or 'constant'"
        )
    rate = plain.optimizer.defaults["lr"]
    runs = [(start, _factor(args, steps, rate)) for start, steps in schedule.schedules()]

    def factor(step: int) -> float:
        start, of_run = next(run for run in reversed(runs) if run[0] <= step)
        return float(of_run(step - start))

    return LambdaLR(plain.optimizer, factor)


def _factor(args: TrainingArguments, steps: int, rate: float) -> Callable[[int], float]:
    one = get_scheduler(
        args.lr_scheduler_type,
        # The same rate as the real one: schedules with a lowest rate take its share of it.
        optimizer=torch.optim.SGD([torch.zeros(1)], lr=rate),
        num_warmup_steps=args.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=cast("dict[str, Any] | None", args.lr_scheduler_kwargs),
    )
    return cast(LambdaLR, one).lr_lambdas[0]  # of the same kind as the plain one
