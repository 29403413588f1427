"""What acts once per optimizer step of a Trainer, on complete and unscaled gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, cast

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from evenkeel.integrations._unscale import unscale
from evenkeel.partition import By, Components, CurrentComponents, Roles

__all__ = ["EachStep"]


class EachStep(TrainerCallback, ABC):
    """Acts once per optimizer step, when gradients are complete and unscaled, on what is trained by then."""

    def __init__(self, by: By = "tensor", roles: Roles | None = None) -> None:
        self.by: By = by
        self.roles = roles
        self._current: CurrentComponents | None = None
        self._model: nn.Module | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the model; ``model_init`` makes a new one for every training."""
        self._look(kwargs["model"])

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Act on what the optimizer is about to see."""
        unscale(kwargs["optimizer"])
        # A loop that is no Trainer's may leave out on_train_begin, or train another model from some step on.
        current = self._look(kwargs["model"]) if self._model is not kwargs["model"] else self._current
        self._act(cast(CurrentComponents, current)(), state)

    def _look(self, model: nn.Module) -> CurrentComponents:
        self._model = model
        self._current = CurrentComponents(model, self.by, roles=self.roles)
        return self._current

    @abstractmethod
    def _act(self, parts: Components, state: TrainerState) -> None: ...
