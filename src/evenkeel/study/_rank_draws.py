"""What the processes of a run draw alike, and what each draws for itself."""

from __future__ import annotations

import hashlib
from typing import Any, final

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from evenkeel.study._order import length_grouping

__all__ = ["RankDraws"]


@final
class RankDraws(TrainerCallback):
    """Draws one order of the data in all processes, that of a single process, and then dropout for each its own.

    Length grouping draws from torch's global generator, whose state would drift apart, and looks at as many examples
    at a time as its process has; a single process sees those of the whole batch. The first process draws on as a single
    one does. The others begin each epoch anew, by seed, epoch and rank.
    """

    def __init__(self, batch_size: int) -> None:
        """Take the number of examples of an optimizer step."""
        self._batch_size = batch_size
        self._drawn = False

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Let all be alike, before the first batch of the epoch is drawn."""
        first = [torch.get_rng_state()]
        dist.broadcast_object_list(first, src=0)
        torch.set_rng_state(first[0])
        self._drawn = False
        sampler = length_grouping(train_dataloader)
        if sampler is not None:
            sampler.batch_size = self._batch_size

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let all be different, once the order of the epoch is drawn."""
        if not self._drawn and args.process_index > 0:
            place = f"{args.seed} {state.global_step} {args.process_index}"
            torch.manual_seed(int.from_bytes(hashlib.sha256(place.encode()).digest()[:7]))
        self._drawn = True
