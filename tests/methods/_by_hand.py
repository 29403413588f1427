"""A training written with torch alone, in float64: the slow twin of what a ``MethodTrainer`` does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tests.integrations._training import BATCH, DATA, EPSILON, RATE
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["STEPS", "by_hand", "loss_of", "rows"]

STEPS = len(DATA) // BATCH


def rows(step: int) -> Tensor:
    """The tokens of a step's batch."""
    return DATA.ids[step * BATCH : (step + 1) * BATCH]


def loss_of(model: nn.Module, step: int) -> Tensor:
    ids = rows(step)
    return F.cross_entropy(model(input_ids=ids).logits, ids[:, 0] % 2)


def by_hand(
    model: nn.Module,
    *,
    loss: Callable[[nn.Module, int], Tensor] = loss_of,
    rate: Callable[[int], float] = lambda step: RATE,
    max_norm: float = 1.0,
    weight_decay: float = 0.0,
    parameters: list[Tensor] | None = None,
    before_clipping: Callable[[int], object] = lambda step: None,
    before_step: Callable[[int], object] = lambda step: None,
    after_step: Callable[[int], object] = lambda step: None,
) -> None:
    """Fine-tune with AdamW and global clipping, and call functions in between, with the step's number.

    Biases and norms are not decayed, which is what a Trainer does.
    """
    named = list(model.named_parameters())
    trained = [one for _, one in named] if parameters is None else parameters
    bare = {id(one) for name, one in named if name.endswith("bias") or "norm" in name.lower()}
    groups: list[dict[str, Any]] = [
        {"params": [one for one in trained if id(one) not in bare], "weight_decay": weight_decay},
        {"params": [one for one in trained if id(one) in bare], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=RATE, eps=EPSILON)
    model.train()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.zero_grad()
        loss(model, step).backward()
        before_clipping(step)
        nn.utils.clip_grad_norm_([one for one in trained if one.grad is not None], max_norm)
        with torch.no_grad():
            before_step(step)
        optimizer.step()
        with torch.no_grad():
            after_step(step)
