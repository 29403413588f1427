"""What the tests of Trainers share: rows, a loss that adds up, and the loop written by hand that is their oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tests import _models
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

RATE, BATCH = 1e-2, 4
EPSILON = 1e-3  # the gradient of a key's bias is zero but for rounding, which Adam would make as large as any other
DATA = _models.Rows(5 * BATCH)


def mean_over_all(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """A loss that adds up to the large batch's over accumulated small ones."""
    total = F.cross_entropy(outputs.logits, labels, reduction="sum")
    return total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)


def by_hand(
    model: nn.Module, *, batch: int = BATCH, max_norm: float, epochs: int = 1, autocast: bool = False
) -> list[dict[str, float]]:
    """Train with torch alone, each parameter clipped by torch on its own; return the norms before clipping."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, eps=EPSILON, weight_decay=0.0)
    model.train()
    seen = []
    for _ in range(epochs):
        for start in range(0, len(DATA), batch):
            ids = DATA.ids[start : start + batch]
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = F.cross_entropy(model(input_ids=ids).logits, ids[:, 0] % 2)
            loss.backward()
            seen.append(
                {
                    name: nn.utils.clip_grad_norm_([parameter], max_norm).item()
                    for name, parameter in model.named_parameters()
                    if parameter.grad is not None
                }
            )
            optimizer.step()
    return seen


def assert_same_weights(one: nn.Module, other: nn.Module, tolerance: float = 1e-6) -> None:
    for (name, mine), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        difference = (mine - theirs).abs().max().item()
        assert difference <= tolerance, f"{name} differs by {difference}"


class Before(TrainerCallback):
    """Calls a function with model, optimizer and step once gradients are complete, before callbacks that come later."""

    def __init__(self, act: Callable[[nn.Module, Any, int], object]) -> None:
        self.act = act

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.act(kwargs["model"], kwargs["optimizer"], state.global_step)


class After(Before):
    """Does the same at the end of the step."""

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Not yet."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.act(kwargs["model"], kwargs["optimizer"], state.global_step)


def weights(model: nn.Module) -> Tensor:
    """A copy of all weights in one long vector."""
    return torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])
