"""What acts once per optimizer step of a Trainer, on complete and unscaled gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from evenkeel.partition import By, Components, CurrentComponents, Roles

__all__ = ["EachStep", "unscale"]


def unscale(optimizer: Any) -> None:
    """Make the gradients what the optimizer will see: divide an fp16 loss scale out, once.

    Args:
        optimizer: what the Trainer hands to its callbacks; Accelerate's wrapper knows the scaler.
    """
    scaler = getattr(optimizer, "scaler", None)
    if scaler is None or not scaler.is_enabled():
        return
    try:
        scaler.unscale_(optimizer.optimizer)
    except RuntimeError as error:
        # Some versions of the Trainer unscale before the callbacks run; doing it twice would be wrong and is refused.
        if "already been called" not in str(error):
            raise


class EachStep(TrainerCallback, ABC):
    """Acts once per optimizer step, when gradients are complete and unscaled, on what is trained by then."""

    def __init__(self, by: By = "tensor", roles: Roles | None = None) -> None:
        self.by: By = by
        self.roles = roles
        self._current: CurrentComponents | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the model; ``model_init`` makes a new one for every training."""
        self._current = CurrentComponents(kwargs["model"], self.by, roles=self.roles)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Act on what the optimizer is about to see."""
        unscale(kwargs["optimizer"])
        if self._current is None:  # a loop that is no Trainer's may leave out on_train_begin
            self._current = CurrentComponents(kwargs["model"], self.by, roles=self.roles)
        self._act(self._current(), state)

    @abstractmethod
    def _act(self, parts: Components, state: TrainerState) -> None: ...
