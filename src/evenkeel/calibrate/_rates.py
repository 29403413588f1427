"""Learning rates that rise over a training, and the end of one whose loss explodes."""

from __future__ import annotations

import math
from typing import Any, final

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from evenkeel.calibrate._arrays import Floats
from evenkeel.errors import MeasureError

__all__ = ["EXPLODED", "RisingRate", "StopWhenExploded", "rising_rates"]

EXPLODED = 3.0  # times the loss that the training began with
_FIRST, _LAST = 5, 3  # losses that are averaged: at the beginning, and now


def rising_rates(lowest: float, highest: float, steps: int) -> Floats:
    """Return rates that rise exponentially: η_k = lowest · (highest / lowest)^((k - 1) / (K - 1)).

    Args:
        lowest: the rate of the first step; positive.
        highest: the rate of the last step, above the lowest.
        steps: K, how many there are; at least 2.

    Returns:
        The rates, shape ``[K]``.

    Raises:
        MeasureError: if they cannot rise so.

    Example:
        >>> rising_rates(1e-4, 1e-1, 4).round(6).tolist()
        [0.0001, 0.001, 0.01, 0.1]
    """
    if not 0 < lowest < highest < math.inf:
        raise MeasureError(
            f"the learning rate cannot rise from {lowest:g} to {highest:g}; give two positive numbers, the lower one "
            "first, such as 1e-6 and 1e-1"
        )
    if steps < 2:
        raise MeasureError(f"a learning rate cannot rise over {steps} steps; it needs two at least")
    return np.geomspace(lowest, highest, steps)


@final
class RisingRate(TrainerCallback):
    """Gives each optimizer step a learning rate of its own, whatever the Trainer's schedule says.

    The schedule sets the rate after each step; this sets it before the next one. Groups with rates of their own keep
    their proportions.
    """

    def __init__(self, rates: Floats) -> None:
        """Hold one rate for each step, shape ``[K]``."""
        self._rates = rates
        self._shares: list[float] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note what each group's rate is as a share of the training's."""
        self._shares = [group["lr"] / args.learning_rate for group in kwargs["optimizer"].param_groups]

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the rate of the step that begins."""
        rate = float(self._rates[min(state.global_step, len(self._rates) - 1)])
        for group, share in zip(kwargs["optimizer"].param_groups, self._shares, strict=True):
            group["lr"] = rate * share


@final
class StopWhenExploded(TrainerCallback):
    """Ends a training whose loss explodes: nothing that comes later says anything.

    That is: the mean of its last three losses is above 3 times the mean of its first five, or no number.
    """

    def __init__(self) -> None:
        """Begin with no losses seen."""
        self._losses: list[float] = []

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Look at the latest loss."""
        if logs is None or "loss" not in logs:
            return
        self._losses.append(logs["loss"])
        first, last = self._losses[:_FIRST], self._losses[-_LAST:]
        now = sum(last) / len(last)
        if not math.isfinite(now) or (len(self._losses) > _FIRST and now > EXPLODED * sum(first) / len(first)):
            control.should_training_stop = True
