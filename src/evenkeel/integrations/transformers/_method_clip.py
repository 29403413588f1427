"""Clipping as a mix of methods says, as a callback."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

from transformers import TrainerControl, TrainerState, TrainingArguments

from evenkeel.clipping import ClipResult
from evenkeel.clipping.thresholds import Threshold
from evenkeel.integrations.transformers._each_step import EachStep
from evenkeel.methods import Mix
from evenkeel.partition import Components, components

__all__ = ["MethodClip"]


@final
class MethodClip(EachStep):
    """Clips as a mix of methods says.

    Attributes:
        last: what the latest step clipped; None before the first.
        parts: the components that it was clipped in.
    """

    def __init__(self, mix: Mix) -> None:
        """Clip as ``mix`` says."""
        super().__init__()
        self._mix = mix
        self._learning: Threshold | None = None
        self.last: ClipResult | None = None
        self.parts: Components | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin with a threshold that has learnt nothing; the method's own is a configuration."""
        super().on_train_begin(args, state, control, **kwargs)
        given = self._mix.clipping(components(kwargs["model"])).max_norm
        self._learning = copy.deepcopy(given) if isinstance(given, Threshold) else None

    def state_dict(self) -> dict[str, Any]:
        """Return what the threshold has learnt."""
        return {} if self._learning is None else self._learning.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what the threshold had learnt."""
        if self._learning is not None:
            self._learning.load_state_dict(dict(state))

    def _act(self, parts: Components, state: TrainerState) -> None:
        clipping = self._mix.clipping(parts)
        if self._learning is not None:
            clipping = replace(clipping, max_norm=self._learning)
        self.last, self.parts = clipping.clip(), clipping.parts
