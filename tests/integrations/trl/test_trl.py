"""ComponentClip in TRL's trainers: with all components as one it is their own global clipping."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, set_seed

from evenkeel import components
from evenkeel.errors import GradientError
from evenkeel.integrations.transformers import ComponentClip
from evenkeel.models import find_model, load_tokenizer

trl = pytest.importorskip("trl", reason="TRL is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # TRL and its trainers warn of their own ways

LIMIT, STEPS = 0.05, 3
WORDS = ["the cat sleeps", "a dog runs", "the bird sings", "a child reads", "the man walks", "a woman writes"]


def tokenizer() -> Any:
    made = load_tokenizer(find_model("tiny"))
    made.eos_token = made.sep_token
    made.bos_token = made.cls_token
    return made


def llama(kind: type[Any], **changes: Any) -> nn.Module:
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer()),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        pad_token_id=tokenizer().pad_token_id,
        eos_token_id=tokenizer().eos_token_id,
        bos_token_id=tokenizer().bos_token_id,
        initializer_range=0.3,
        **changes,
    )
    model: nn.Module = kind(config)
    return model


def sft(folder: Path, callbacks: list[Any], **options: Any) -> Any:
    return trl.SFTTrainer(
        model=llama(LlamaForCausalLM),
        args=trl.SFTConfig(**usual(folder, **options)),
        train_dataset=Dataset.from_dict({"text": WORDS * 2}),
        processing_class=tokenizer(),
        callbacks=callbacks,
    )


def dpo(folder: Path, callbacks: list[Any], **options: Any) -> Any:
    data = Dataset.from_dict({"prompt": WORDS * 2, "chosen": [" and sleeps"] * 12, "rejected": [" or the dog"] * 12})
    return trl.DPOTrainer(
        model=llama(LlamaForCausalLM),
        ref_model=llama(LlamaForCausalLM),
        args=trl.DPOConfig(**usual(folder, **options)),
        train_dataset=data,
        processing_class=tokenizer(),
        callbacks=callbacks,
    )


def reward(folder: Path, callbacks: list[Any], **options: Any) -> Any:
    data = Dataset.from_dict({"chosen": WORDS * 2, "rejected": [word[::-1] for word in WORDS * 2]})
    return trl.RewardTrainer(
        model=llama(LlamaForSequenceClassification, num_labels=1),
        args=trl.RewardConfig(**usual(folder, **options)),
        train_dataset=data,
        processing_class=tokenizer(),
        callbacks=callbacks,
    )


def usual(folder: Path, **options: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "fp16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "max_grad_norm": 0,
        "seed": 0,
    } | options


TRAINERS = pytest.mark.parametrize("make", [sft, dpo, reward])


@pytest.mark.slow
@TRAINERS
def test_all_in_one_component_is_its_own_clipping(make: Callable[..., Any], tmp_path: Path) -> None:
    ours, theirs, unclipped = (
        make(tmp_path, [ComponentClip(LIMIT, by="global")]),
        make(tmp_path, [], max_grad_norm=LIMIT),
        make(tmp_path, []),
    )
    for trainer in (ours, theirs, unclipped):
        trainer.train()
    mine, other, free = (flat(trainer.model) for trainer in (ours, theirs, unclipped))
    torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)
    assert (mine - free).abs().max() > 1e-4  # clipping did matter
    assert [entry["grad_norm"] for entry in steps(ours)] == pytest.approx(
        [entry["grad_norm"] for entry in steps(theirs)], rel=1e-3
    )


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def steps(trainer: Any) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
@TRAINERS
def test_every_component_is_clipped_and_told_of(make: Callable[..., Any], tmp_path: Path) -> None:
    clip = ComponentClip({"query": 1e-7, "*": math.inf})  # the first gradients of DPO are tiny
    trainer = make(tmp_path, [clip])
    trainer.train()
    assert clip.last is not None
    assert clip.last.names == tuple(part.name for part in components(trainer.model))
    for entry in steps(trainer):
        assert entry["clip_rate/query"] == 1.0
        assert entry["clip_rate/value"] == 0.0
        squares = sum(value**2 for name, value in entry.items() if name.startswith("grad_norm/"))
        assert math.sqrt(squares) == pytest.approx(entry["grad_norm"], rel=1e-4)


@pytest.mark.slow
@TRAINERS
def test_its_own_clipping_beside_it_is_refused(make: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(GradientError, match=r"clips globally \(max_grad_norm=1.0\)"):
        make(tmp_path, [ComponentClip(LIMIT)], max_grad_norm=1.0).train()
