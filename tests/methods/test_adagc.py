from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tests import _models
from tests.methods._clipped_by_hand import EPSILON, Arguments, assert_clips_like, norm_of
from torch import Tensor

from evenkeel import components
from evenkeel.clipping.thresholds import Ema
from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import Method
from evenkeel.methods.adagc import AdaGC
from evenkeel.testing import MethodContract


@pytest.mark.parametrize("warmup", [0, 2])
def test_it_is_the_papers_algorithm(arguments: Arguments, warmup: int) -> None:
    average: dict[str, float] = {}

    def clip(step: int, grads: Mapping[str, Tensor]) -> None:
        total = norm_of(*grads.values())
        for name, grad in grads.items():
            norm = norm_of(grad)
            if step < warmup:
                threshold, counted = 0.5, total
            else:
                threshold, counted = 1.05 * average.get(name, math.inf), norm
            grad.mul_(min(1.0, threshold / (counted + EPSILON)))
            clipped = norm * min(1.0, threshold / counted)
            if step < warmup or name not in average:
                average[name] = min(average.get(name, math.inf), clipped)
            else:
                average[name] = 0.9 * average[name] + 0.1 * clipped

    assert_clips_like(arguments, AdaGC(beta=0.9, warmup=warmup, warmup_max_norm=0.5), clip)


def test_the_threshold_is_the_configured_one_of_every_tensor() -> None:
    model = _models.bert()
    clipping = AdaGC(ratio=1.2, beta=0.5, warmup=3, warmup_max_norm=2.0).clipping(components(model))
    assert len(clipping.parts) == len(list(model.parameters()))
    assert isinstance(clipping.max_norm, Ema)
    assert (clipping.max_norm.ratio, clipping.max_norm.beta) == (1.2, 0.5)
    assert (clipping.max_norm.warmup, clipping.max_norm.warmup_max_norm) == (3, 2.0)
    plain = AdaGC().clipping(components(model)).max_norm
    assert isinstance(plain, Ema)
    assert (plain.ratio, plain.beta, plain.warmup, plain.warmup_max_norm) == (1.05, 0.98, 100, 1.0)


def test_a_block_that_is_released_later_begins_its_own_average(arguments: Arguments) -> None:
    model = _models.bert(3)
    trainer = MethodTrainer(
        model, arguments(), methods=["adagc:warmup=2", "gradual-unfreezing"], train_dataset=_models.Rows(20)
    )
    trainer.train()
    assert trainer.last_clip is not None
    assert len(trainer.last_clip.names) == len(list(model.parameters()))
    assert torch.isfinite(trainer.last_clip.norms).all()


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("ratio", [0, -1, math.inf, math.nan, None, "1"]),
        ("beta", [1, -0.1, math.nan, None, True]),
        ("warmup", [-1, 1.5, math.inf, None, "many", True]),
        ("warmup_max_norm", [0, -1, math.inf, math.nan, None]),
    ],
)
def test_what_cannot_be_is_refused(name: str, bad: list[Any]) -> None:
    for value in bad:
        with pytest.raises(MethodError, match=rf"adagc: {name} must be .*, but got .*; "):
            AdaGC(**{name: value})


class TestAdaGCContract(MethodContract):
    def make(self) -> Method:
        return AdaGC(warmup=1, warmup_max_norm=0.1, beta=0.5)
