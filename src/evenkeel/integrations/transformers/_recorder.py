"""Gradient norms of a training, as a callback."""

from __future__ import annotations

from typing import Any, final

from transformers import TrainerControl, TrainerState, TrainingArguments

from evenkeel.integrations.transformers._each_step import EachStep
from evenkeel.measure import GradientNorms
from evenkeel.partition import Components, Roles

__all__ = ["Recorder"]


@final
class Recorder(EachStep):
    """Record the gradient norm of every component before clipping; put it before any clipping callback.

    Attributes:
        norms: what was recorded.
    """

    def __init__(self, *, every: int = 10, roles: Roles | None = None) -> None:
        """Record each ``every``-th step; ``roles`` are rules as in :func:`evenkeel.components`."""
        super().__init__(roles=roles)
        self.norms = GradientNorms(every=every)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin anew, on a model that may be another one than in the training before."""
        super().on_train_begin(args, state, control, **kwargs)
        self.norms = GradientNorms(every=self.norms.every)

    def _act(self, parts: Components, state: TrainerState) -> None:
        self.norms.record(state.global_step, parts)
