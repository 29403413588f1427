"""Trainings on real tiny architectures, by clip-then-step and by what must come to the same."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from tests import _models
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM, set_seed

from evenkeel import Components, clip_grad_norm_, components


def gpt2() -> nn.Module:
    """Its fused projections are cut by columns, which no kernel on the CPU reads."""
    set_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            n_embd=16, n_head=2, n_layer=2, vocab_size=32, n_positions=16, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
        )
    )


def mixtral() -> nn.Module:
    """Its experts are stacked in one tensor, and some see no token."""
    set_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_local_experts=4,
        )
    )


def bert() -> nn.Module:
    return _models.bert()


def llama() -> nn.Module:
    set_seed(0)
    return _models.llama()


MODELS: dict[str, Callable[[], nn.Module]] = {"bert": bert, "llama": llama, "gpt2": gpt2, "mixtral": mixtral}


def batches(model: nn.Module, count: int) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        ids = torch.randint(1, 32, (4, 8), generator=generator)
        yield {"input_ids": ids, "labels": ids[:, 0] % 2 if "Classification" in type(model).__name__ else ids}


def backward(model: nn.Module, batch: dict[str, Tensor], scale: float = 1.0) -> None:
    (model(**batch).loss * scale).backward()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def clip_then_step(
    make: Callable[[], nn.Module],
    make_optimizer: Callable[[list[Tensor]], Any],
    max_norm: Any,
    steps: int,
    by: Any = "tensor",
    **clip: Any,
) -> dict[str, Tensor]:
    model = make()
    parts: Components = components(model, by)
    optimizer = make_optimizer(list(model.parameters()))
    for batch in batches(model, steps):
        backward(model, batch)
        clip_grad_norm_(parts, max_norm, **clip)
        optimizer.step()
        optimizer.zero_grad()
    return weights(model)


# Keys' biases have a gradient of 0 but for rounding, which Adam would blow up to whole steps: hence the epsilon.
ADAMW: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1, "eps": 1e-5}


def adamw(parameters: list[Tensor], **options: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, **({"foreach": False} | ADAMW | options))


def assert_alike(ours: dict[str, Tensor], theirs: dict[str, Tensor], *, tolerance: float = 2e-5) -> None:
    """Weights after many steps: what float32 rounding grows to, against steps of 1e-3 that add up to tenths."""
    for name, wanted in theirs.items():
        far = (ours[name] - wanted).abs().max().item()
        assert far <= tolerance * (1 + wanted.abs().max().item()), f"{name}: {far}"


sgd = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)
