from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tests import _models
from tests.integrations._training import DATA, assert_same_weights
from tests.methods._by_hand import by_hand
from tests.methods._clipped_by_hand import EPSILON, Arguments, norm_of
from torch import Tensor, nn

from evenkeel import components
from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import FullFineTuning, Method
from evenkeel.methods.agc import AGC
from evenkeel.testing import MethodContract


def clip_rows(model: nn.Module, grads: Mapping[str, Tensor], *, ratio: float, floor: float, head: bool) -> None:
    weights = dict(model.named_parameters())
    for name, grad in grads.items():
        if name.startswith("classifier") and not head:
            continue
        rows = [(grad, weights[name])] if grad.dim() == 1 else list(zip(grad, weights[name], strict=True))
        for row, weight in rows:
            row.mul_(min(1.0, ratio * max(norm_of(weight), floor) / (norm_of(row) + EPSILON)))


@pytest.mark.parametrize("head", [False, True])
def test_rows_are_clipped_as_in_the_paper_and_the_head_is_not(arguments: Arguments, head: bool) -> None:
    ours, theirs = _models.bert().double(), _models.bert().double()
    trainer = MethodTrainer(ours, arguments(), methods=[AGC(ratio=0.02, floor=0.1, head=head)], train_dataset=DATA)
    trainer.train()
    by_hand(
        theirs,
        max_norm=math.inf,
        before_clipping=lambda step: clip_rows(
            theirs,
            {name: one.grad for name, one in theirs.named_parameters() if one.grad is not None},
            ratio=0.02,
            floor=0.1,
            head=head,
        ),
    )
    assert_same_weights(ours, theirs, tolerance=1e-9)
    assert trainer.last_clip is not None
    left = dict(zip(trainer.last_clip.names, trainer.last_clip.coefficients.tolist(), strict=True))
    assert (left["classifier.weight"] == 1) is not head
    assert left["bert.pooler.dense.weight"] < 1


@pytest.mark.parametrize("more", [{"optimizer": "clipped-adamw"}, {"in_backward": True}])
def test_the_head_is_trained_wherever_gradients_are_clipped(arguments: Arguments, more: dict[str, Any]) -> None:
    models = [_models.bert(), _models.bert()]
    for model, how in zip(models, ({}, more), strict=True):
        MethodTrainer(model, arguments(), methods=["agc"], train_dataset=DATA, **how).train()
    assert_same_weights(*models)


def test_the_head_is_what_the_head_is() -> None:
    parts = components(_models.roberta())
    threshold: Any = AGC().clipping(parts).max_norm
    assert (threshold.ratio, threshold.floor, threshold.per) == (0.01, 1e-3, "row")
    free = {part.path for part in parts if math.isinf(threshold.ratio_of(part))}
    assert free == {"head.dense.weight", "head.dense.bias", "head.out_proj.weight", "head.out_proj.bias"}
    assert AGC().clipping(parts).parts is parts


def test_a_head_alone_is_not_clipped_at_all(arguments: Arguments) -> None:
    models = [_models.bert(), _models.bert()]
    for model, clip in zip(models, ("agc:ratio=1e-9", "full:max_norm=inf"), strict=True):
        methods = [clip, "head-only:pooler=false"]
        MethodTrainer(model, arguments(), methods=methods, train_dataset=DATA).train()
    assert torch.equal(models[0].classifier.weight, models[1].classifier.weight)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("ratio", [0, -1, math.inf, math.nan, None, "1", True]),
        ("floor", [0, -1, math.inf, math.nan, None]),
        ("head", [None, 0, "no"]),
    ],
)
def test_what_cannot_be_is_refused(name: str, bad: list[Any]) -> None:
    for value in bad:
        with pytest.raises(MethodError, match=rf"agc: {name} must be .*, but got .*; "):
            AGC(**{name: value})


class TestAGCContract(MethodContract):
    def make(self) -> Method:
        return AGC()

    def neutral(self) -> Method:
        return AGC(ratio=1e30, floor=1e6)

    def twin(self) -> tuple[Method]:
        return (FullFineTuning(max_norm=math.inf),)
