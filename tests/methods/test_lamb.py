from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests import _models
from tests.integrations._training import DATA, EPSILON, RATE, assert_same_weights
from tests.methods._by_hand import STEPS, loss_of
from torch import nn
from transformers import TrainingArguments

from evenkeel import components
from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import ComponentClipping, Method, Mix
from evenkeel.methods.lamb import LayerAdaptiveMoments
from evenkeel.optim import Lamb
from evenkeel.testing import MethodContract

Arguments = Callable[..., TrainingArguments]


def trainer_of(model: nn.Module, args: TrainingArguments, *methods: Method, **more: Any) -> MethodTrainer:
    trainer = MethodTrainer(model, args, methods=list(methods), train_dataset=DATA, **more)
    trainer.train()
    return trainer


def by_formula(model: nn.Module, *, max_norm: float, decay: float, most: float, vectors: bool) -> set[str]:
    """Train by the paper's algorithm 2, and return the names of the tensors that were rescaled."""
    model.train()
    named = dict(model.named_parameters())
    means, squares = [{name: torch.zeros_like(one) for name, one in named.items()} for _ in range(2)]
    rescaled = set()
    for step in range(1, STEPS + 1):
        model.zero_grad()
        loss_of(model, step - 1).backward()
        nn.utils.clip_grad_norm_([one for one in named.values() if one.grad is not None], max_norm)
        with torch.no_grad():
            for name, one in named.items():
                if one.grad is None:
                    continue
                excepted = name.endswith("bias") or "LayerNorm" in name  # as in the published code
                means[name] = 0.9 * means[name] + 0.1 * one.grad
                squares[name] = 0.999 * squares[name] + 0.001 * one.grad**2
                first, second = means[name] / (1 - 0.9**step), squares[name] / (1 - 0.999**step)
                direction = first / (second.sqrt() + EPSILON) + (0.0 if excepted else decay) * one
                ratio = 1.0
                if (vectors or not excepted) and one.norm() > 0:
                    ratio = min((one.norm() / direction.norm()).item(), most)
                    rescaled.add(name)
                one.sub_(RATE * ratio * direction)
    return rescaled


@pytest.mark.parametrize(
    ("most", "vectors"), [(0.7, False), *(pytest.param(None, every, marks=pytest.mark.slow) for every in (False, True))]
)
def test_it_is_the_papers_algorithm(arguments: Arguments, most: float | None, vectors: bool) -> None:
    ours, theirs = _models.bert().double(), _models.bert().double()
    trainer_of(ours, arguments(weight_decay=0.1), LayerAdaptiveMoments(max_ratio=most, vectors=vectors))
    rescaled = by_formula(theirs, max_norm=1.0, decay=0.1, most=most or math.inf, vectors=vectors)
    assert ("bert.encoder.layer.0.output.LayerNorm.weight" in rescaled) is vectors
    assert "bert.encoder.layer.0.output.dense.weight" in rescaled
    assert_same_weights(ours, theirs, tolerance=1e-9)


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_a_method_that_clips_decides_clipping(order: slice) -> None:
    parts = components(_models.bert())
    assert Mix((LayerAdaptiveMoments(), ComponentClipping(max_norm=0.01))[order]).clipping(parts).max_norm == 0.01
    alone = Mix((LayerAdaptiveMoments(),)).clipping(parts)
    assert (len(alone.parts), alone.max_norm) == (1, 1.0)


@pytest.mark.slow
def test_stepping_in_backward_gives_the_same_weights(arguments: Arguments) -> None:
    plain, model = _models.bert(), _models.bert()
    trainer_of(plain, arguments(), LayerAdaptiveMoments(max_norm=math.inf))
    trainer_of(model, arguments(), LayerAdaptiveMoments(max_norm=math.inf), in_backward=True)
    assert_same_weights(model, plain, tolerance=0.0)


def test_groups_and_settings_are_those_of_the_training() -> None:
    one, other = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    groups = [{"params": [one], "lr": 0.3, "weight_decay": 0.5}, {"params": [other], "eps": 1e-4}]
    plain = torch.optim.AdamW(groups, lr=0.1, betas=(0.5, 0.6), weight_decay=0.2, fused=True)
    made = LayerAdaptiveMoments(max_ratio=3.0).optimizer(plain)
    assert isinstance(made, Lamb)
    assert {(group["max_ratio"], group["vectors"]) for group in made.param_groups} == {(3.0, False)}
    found = [
        (group["params"], group["lr"], group["betas"], group["eps"], group["weight_decay"])
        for group in made.param_groups
    ]
    assert found == [([one], 0.3, (0.5, 0.6), 1e-8, 0.5), ([other], 0.1, (0.5, 0.6), 1e-4, 0.2)]


def test_it_takes_the_place_of_adamw_alone() -> None:
    with pytest.raises(MethodError, match="this training has SGD; set TrainingArguments"):
        LayerAdaptiveMoments().optimizer(torch.optim.SGD([nn.Parameter(torch.zeros(1))]))


def test_sharded_parameters_are_refused_before_training(arguments: Arguments) -> None:
    args = arguments()
    args.fsdp = ["full_shard"]
    with pytest.raises(MethodError, match="lamb acts on whole parameters, and FSDP shards them"):
        trainer_of(_models.bert(), args, LayerAdaptiveMoments())


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("max_ratio", [0, -1, math.inf, math.nan, "1", True]),
        ("vectors", [None, 0, "yes"]),
        ("max_norm", [0, -1, math.nan, None, "1"]),
    ],
)
def test_what_cannot_be_is_refused(name: str, bad: list[Any]) -> None:
    for value in bad:
        with pytest.raises(MethodError, match=rf"lamb: {name} must be .*, but got .*; "):
            LayerAdaptiveMoments(**{name: value})


class TestLayerAdaptiveMomentsContract(MethodContract):
    def make(self) -> Method:
        return LayerAdaptiveMoments()
