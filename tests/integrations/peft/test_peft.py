"""Clipping of models with PEFT's adapters: each adapter matrix is a component with its projection's role."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from tests import _models
from tests.integrations._training import DATA, EPSILON, RATE, assert_same_weights, mean_over_all
from torch import nn
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from evenkeel import clip_grad_norm_, components
from evenkeel.integrations.transformers import ComponentClip

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT asks for it
MAX_NORM = 5e-3
CONFIGS: dict[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(
        target_modules=["query", "value"], r=2, lora_alpha=16, modules_to_save=["classifier"]
    ),
    "dora": lambda: peft.LoraConfig(
        target_modules=["query", "value"], r=2, use_dora=True, modules_to_save=["classifier"]
    ),
    "ia3": lambda: peft.IA3Config(
        target_modules=["key", "value"], feedforward_modules=[], modules_to_save=["classifier"]
    ),
}
KINDS = pytest.mark.parametrize("kind", CONFIGS)


def adapted(kind: str) -> Any:
    model = _models.bert()
    torch.manual_seed(0)
    return peft.get_peft_model(model, CONFIGS[kind]())


@KINDS
def test_components_are_the_adapters_under_the_names_of_the_plain_model(kind: str) -> None:
    model = adapted(kind)
    parts = components(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(part.size for part in parts) == sum(map(torch.numel, trained))
    roles = {part.role for part in parts}
    assert roles == {"head", "value", "key" if kind == "ia3" else "query"}
    assert all(part.layer in (0, 1) for part in parts if part.role != "head")


@KINDS
def test_the_trainer_clips_every_adapter_on_its_own(kind: str, arguments: Callable[..., TrainingArguments]) -> None:
    ours, theirs, unclipped = adapted(kind), adapted(kind), adapted(kind)
    clip = ComponentClip(MAX_NORM)
    trainer = Trainer(ours, arguments(), train_dataset=DATA, compute_loss_func=mean_over_all, callbacks=[clip])
    trainer.train()
    by_hand(theirs, MAX_NORM)
    by_hand(unclipped, float("inf"))
    assert_same_weights(ours, theirs, tolerance=1e-5)
    with pytest.raises(AssertionError, match="differs"):
        assert_same_weights(ours, unclipped, tolerance=1e-4)
    assert clip.last is not None
    assert len(clip.last.names) == sum(parameter.requires_grad for parameter in theirs.parameters())


def by_hand(model: nn.Module, max_norm: float) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, eps=EPSILON, weight_decay=0.0)
    model.train()
    for start in range(0, len(DATA), 4):
        ids = DATA.ids[start : start + 4]
        optimizer.zero_grad()
        F.cross_entropy(model(input_ids=ids).logits, ids[:, 0] % 2).backward()
        for parameter in trained:
            nn.utils.clip_grad_norm_([parameter], max_norm)
        optimizer.step()


def test_roles_choose_among_adapters() -> None:
    model = adapted("lora")
    model(input_ids=DATA.ids[:4], labels=DATA.ids[:4, 0] % 2).loss.backward()
    result = clip_grad_norm_(components(model), {"head": 1e-3, "*": float("inf")})
    clipped = {name for name, one in zip(result.names, result.coefficients.tolist(), strict=True) if one < 1}
    assert clipped == {part.name for part in components(model) if part.role == "head"}
