"""Trainings whose gradients are clipped by plain loops in float64: the slow twins of methods that own clipping."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from tests import _models
from tests.integrations._training import DATA, assert_same_weights
from tests.methods._by_hand import by_hand
from torch import Tensor
from transformers import TrainingArguments

from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import Method

__all__ = ["EPSILON", "Arguments", "assert_clips_like", "grown", "norm_of"]

Arguments = Callable[..., TrainingArguments]
EPSILON = 1e-6  # of a coefficient's denominator, as in torch


def norm_of(*tensors: Tensor) -> float:
    """The norm of everything together, summed without rounding."""
    return math.sqrt(math.fsum(entry * entry for tensor in tensors for entry in tensor.flatten().tolist()))


def grown(step: int) -> float:
    """What the gradients of a step are multiplied by, so that there are spikes among them."""
    return (1.0, 1.3, 20.0, 0.2, 3.0)[step]


def assert_clips_like(
    arguments: Arguments,
    method: Method,
    clip: Callable[[int, Mapping[str, Tensor]], object],
    **options: Any,
) -> None:
    """Train a BERT by a method, and by hand with gradients that ``clip`` changes in place by their names."""
    ours, theirs = _models.bert().double(), _models.bert().double()
    for one in (ours, theirs):  # the same spikes for both, before anybody looks
        seen = dict.fromkeys(one.parameters(), 0)
        for parameter in one.parameters():
            parameter.register_hook(_spikes(seen, parameter))
    trainer = MethodTrainer(ours, arguments(**options), methods=[method], train_dataset=DATA)
    trainer.train()
    by_hand(
        theirs,
        max_norm=math.inf,
        before_clipping=lambda step: clip(
            step, {name: one.grad for name, one in theirs.named_parameters() if one.grad is not None}
        ),
    )
    assert_same_weights(ours, theirs, tolerance=1e-9)
    assert trainer.last_clip is not None
    plain = _models.bert().double()
    by_hand(plain, max_norm=math.inf)
    assert any(
        (one - other).abs().max() > 1e-4 for one, other in zip(ours.parameters(), plain.parameters(), strict=True)
    )


def _spikes(seen: dict[Any, int], parameter: Any) -> Callable[[Tensor], Tensor]:
    def spike(grad: Tensor) -> Tensor:
        seen[parameter] += 1
        return grad * grown(seen[parameter] - 1)

    return spike
