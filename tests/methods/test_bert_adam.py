from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests import _models
from tests.integrations._training import DATA, RATE, assert_same_weights
from tests.methods._by_hand import STEPS, loss_of
from torch import nn
from transformers import TrainingArguments

from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import Method, Recipe, parse_mix
from evenkeel.methods.bert_adam import BertAdam
from evenkeel.testing import MethodContract

Arguments = Callable[..., TrainingArguments]


def historical(model: nn.Module, *, decay: float, eps: float, limit: float, steps: int = STEPS) -> None:
    """BERT's Adam as it was written then: m / (sqrt(v) + eps) + decay * w, entry by entry in plain arithmetic."""
    moments: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for step in range(steps):
        model.zero_grad()
        loss_of(model, step).backward()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                assert weight.grad is not None
                norm = math.sqrt(math.fsum((weight.grad.flatten() ** 2).tolist()))
                grad = weight.grad * min(1.0, limit / (norm + 1e-6))
                first, second = moments.get(name, (torch.zeros_like(weight), torch.zeros_like(weight)))
                first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad**2
                moments[name] = first, second
                own = 0.0 if name.endswith("bias") or "LayerNorm" in name else decay
                weight -= RATE * (first / (second**0.5 + eps) + own * weight)


@pytest.mark.parametrize(("limit", "decay", "eps"), [(1.0, 0.01, 1e-3), (0.05, 0.3, 1e-2)])
@pytest.mark.parametrize("more", [{}, {"optimizer": "clipped-adamw"}])
def test_it_is_the_historical_update(
    arguments: Arguments, limit: float, decay: float, eps: float, more: dict[str, Any]
) -> None:
    ours, theirs = _models.bert().double(), _models.bert().double()
    method = BertAdam(max_norm=limit, weight_decay=decay, eps=eps)
    MethodTrainer(ours, arguments(), methods=[method], train_dataset=DATA, **more).train()
    historical(theirs, decay=decay, eps=eps, limit=limit)
    assert_same_weights(ours, theirs, tolerance=1e-10)


def test_the_first_step_is_three_times_the_corrected_one(arguments: Arguments) -> None:
    steps = []
    for method in ("bert-adam:weight_decay=0:eps=1e-12", "full"):
        model = _models.bert()
        before = model.classifier.weight.detach().clone()
        args = arguments(max_steps=1, adam_epsilon=1e-12)
        MethodTrainer(model, args, methods=[method], train_dataset=DATA).train()
        steps.append(before - model.classifier.weight.detach())
    torch.testing.assert_close(steps[0], steps[1] * 0.1 / math.sqrt(0.001), rtol=1e-3, atol=0)


def test_the_defaults_are_the_published_ones() -> None:
    assert BertAdam().recipe() == Recipe(weight_decay=0.01, eps=1e-6, correct_bias=False)
    assert BertAdam().max_norm == 1.0
    assert parse_mix("bert-adam+warmup").recipe().warmup == 0.1


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("max_norm", [0, -1, math.nan, None, "1", True, {"query": 1.0}]),
        ("weight_decay", [-0.1, math.inf, None]),
        ("eps", [0, -1, math.nan, "small", None]),
    ],
)
def test_what_cannot_be_is_refused(name: str, bad: list[Any]) -> None:
    for value in bad:
        with pytest.raises(MethodError, match=rf"bert-adam: {name} must be .*, but got .*; "):
            BertAdam(**{name: value})


def test_where_no_optimizer_of_its_own_can_be_it_says_so(arguments: Arguments) -> None:
    model = _models.bert()
    own = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for args, more, said in (
        (arguments(), {"in_backward": True}, "without bias correction, which in_backward=True cannot"),
        (arguments(), {"optimizers": (own, None)}, "bert-adam decides how weights are updated"),
    ):
        with pytest.raises(MethodError, match=said):
            MethodTrainer(model, args, methods=["bert-adam"], train_dataset=DATA, **more)
    with pytest.raises(MethodError, match="makes a SGD"):
        MethodTrainer(model, arguments(optim="sgd"), methods=["bert-adam"], train_dataset=DATA).train()


class TestBertAdamContract(MethodContract):
    def make(self) -> Method:
        return BertAdam(eps=1e-3)
