"""Phases of training, as a callback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from evenkeel.methods import Phase, PhaseSchedule
from evenkeel.partition import Component, Components, components

__all__ = ["Phases"]


@final
class Phases(TrainerCallback):
    """Freezes and releases components as the phases say."""

    def __init__(self, schedule: PhaseSchedule) -> None:
        self._schedule = schedule
        self._parts = Components([])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._parts = components(kwargs["model"])  # what the user froze stays frozen
        self._enter(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._schedule.begins(state.global_step) and state.global_step < state.max_steps:
            phase = self._enter(state.global_step)
            if phase.restart:
                kwargs["optimizer"].state.clear()  # a fine-tuning of its own

    def release(self) -> None:
        self._set(lambda _: True)

    def _enter(self, step: int) -> Phase:
        phase = self._schedule.phases[self._schedule.at(step)[0]]
        self._set(phase.trainable)
        return phase

    def _set(self, trainable: Callable[[Component], bool]) -> None:
        wanted: dict[Tensor, bool] = {}
        for part in self._parts:
            for parameter in part.parameters:  # a tensor is trained if any of its parts is
                wanted[parameter] = trainable(part) or wanted.get(parameter, False)
        for parameter, is_trained in wanted.items():
            parameter.requires_grad_(is_trained)
