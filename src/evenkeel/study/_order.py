"""The order of the data by a seed of its own."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

__all__ = ["DataOrder", "length_grouping"]


def length_grouping(dataloader: Any) -> LengthGroupedSampler | None:
    """Find what groups by length, below whatever a Trainer and accelerate put around it.

    Args:
        dataloader: a dataloader of a Trainer.

    Returns:
        The sampler; None where nothing groups.
    """
    sampler = getattr(dataloader, "batch_sampler", None)
    while sampler is not None and not isinstance(sampler, LengthGroupedSampler):
        sampler = getattr(sampler, "batch_sampler", None) or getattr(sampler, "sampler", None)
    return sampler


class DataOrder(TrainerCallback):
    """Draws the batches of each epoch from the seed and the epoch's number alone.

    ``TrainingArguments.data_seed`` does so for the plain random order. Length grouping draws from torch's global
    generator, so that dropout would follow the order; here it gets a generator of its own.
    """

    def __init__(self, seed: int) -> None:
        """Take the seed of the order."""
        self._seed = seed

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Give length grouping its generator, before the first batch of the epoch is drawn."""
        sampler = length_grouping(train_dataloader)
        if sampler is not None:
            epoch = int(state.epoch or 0)
            sampler.generator = torch.Generator().manual_seed((self._seed << 16) + epoch)
