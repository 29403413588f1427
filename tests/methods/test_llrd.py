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
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
    TrainingArguments,
)

from evenkeel import components
from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import Method, Setting
from evenkeel.methods.llrd import LayerWiseDecay
from evenkeel.testing import MethodContract
from evenkeel.testing._tiny import classifier

Arguments = Callable[..., TrainingArguments]


def exponent_in_bert(name: str, depth: int) -> int:
    """The published rule, on BERT's names."""
    if name.startswith(("classifier", "bert.pooler")):
        return 0
    if name.startswith("bert.embeddings"):
        return depth + 1
    return depth - int(name.split(".")[3])


def test_each_layer_has_its_rate_and_the_schedule_goes_on_top(arguments: Arguments) -> None:
    ours, theirs = _models.bert(3).double(), _models.bert(3).double()
    args = arguments(lr_scheduler_type="linear", weight_decay=0.1)
    MethodTrainer(ours, args, methods=[LayerWiseDecay(decay=0.5)], train_dataset=DATA).train()
    named = list(theirs.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [parameter],
                "weight_decay": 0.0 if name.endswith("bias") or "LayerNorm" in name else 0.1,
                "peak": RATE * 0.5 ** exponent_in_bert(name, 3),
            }
            for name, parameter in named
        ],
        eps=EPSILON,
    )
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * (1 - step / STEPS)
        optimizer.zero_grad()
        loss_of(theirs, step).backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
    assert_same_weights(ours, theirs, tolerance=1e-10)


def test_the_rate_that_is_logged_is_the_heads(arguments: Arguments) -> None:
    trainer = MethodTrainer(_models.bert(), arguments(logging_steps=1), methods=["llrd"], train_dataset=DATA)
    trainer.train()
    assert [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry] == [RATE] * STEPS


def rates(model: nn.Module, decay: float = 0.5) -> dict[str, float]:
    parts = components(model)
    found = LayerWiseDecay(decay=decay).rates(parts)
    assert found.keys() == {part.name for part in parts}
    return {part.path: found[part.name] for part in parts}


@pytest.mark.parametrize("name", _models.ALL)
def test_on_every_architecture_rates_fall_from_the_head_to_the_embeddings(name: str) -> None:
    found = rates(_models.ALL[name](3))
    for path, rate in found.items():
        if path.startswith(("head", "pooler", "norm")):
            assert rate == 1
        elif path.startswith("layer"):
            assert rate == 0.5 ** (3 - int(path.split(".")[1]))
        else:
            assert path.startswith("embedding")
            assert rate == 0.5**4
    assert set(found.values()) == {1, 0.5, 0.25, 0.125, 0.0625}


def test_what_all_blocks_share_lies_below_them() -> None:
    config = DebertaV2Config(
        vocab_size=16,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        relative_attention=True,
        position_buckets=4,
        norm_rel_ebd="layer_norm",
        conv_kernel_size=3,
        conv_act="gelu",
    )
    found = rates(DebertaV2ForSequenceClassification(config))
    below = {path: rate for path, rate in found.items() if path.startswith(("relative_position", "conv"))}
    assert {"relative_position.table.weight", "relative_position.norm.weight", "conv_norm.bias"} < below.keys()
    assert set(below.values()) == {0.125}


def test_each_stack_is_counted_from_its_own_top() -> None:
    small: dict[str, Any] = {"vocab_size": 16, "d_model": 8}
    bart = BartForSequenceClassification(
        BartConfig(
            **small,
            encoder_layers=2,
            decoder_layers=3,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=8,
            decoder_ffn_dim=8,
        )
    )
    found = rates(bart)
    assert [found[f"encoder.layer.{layer}.query.weight"] for layer in (1, 0)] == [0.5, 0.25]
    assert [found[f"decoder.layer.{layer}.query.weight"] for layer in (2, 1, 0)] == [0.5, 0.25, 0.125]
    assert found["encoder.embedding.position"] == 0.125
    assert found["decoder.embedding.position"] == found["embedding.word"] == 0.0625
    t5 = T5ForSequenceClassification(T5Config(**small, d_kv=4, num_heads=2, d_ff=8, num_layers=2, num_decoder_layers=2))
    found = rates(t5)
    assert found["encoder.norm.weight"] == found["decoder.norm.weight"] == found["head.dense.weight"] == 1
    assert found["embedding.word"] == 0.125


def test_frozen_layers_do_not_move_the_others() -> None:
    model = _models.bert(3)
    whole = rates(model)
    model.bert.embeddings.requires_grad_(False)
    model.bert.encoder.layer[0].requires_grad_(False)
    left = rates(model)
    assert left == {path: whole[path] for path in left}
    assert len(left) == 2 * 16 + 4


def test_parts_of_a_fused_tensor_have_one_rate() -> None:
    found = rates(classifier("gpt2"))
    assert {found[f"layer.1.{role}.weight"] for role in ("query", "key", "value")} == {0.25}


@pytest.mark.parametrize("model", [_models.bert(1), nn.Linear(2, 1)])
def test_models_without_layers_to_tell_apart_are_refused(model: nn.Module) -> None:
    with pytest.raises(MethodError, match=r"llrd needs a model of at least 2 blocks .*, but found [01]; use full"):
        LayerWiseDecay().check(Setting(model=model, parts=components(model)))


@pytest.mark.parametrize("bad", [0, -0.5, 1.001, math.nan, math.inf, True, "0.95", None, [0.9]])
def test_rates_fall(bad: Any) -> None:
    with pytest.raises(MethodError, match=r"llrd: decay must be a number above 0 to 1, but got .*; 0\.95 is"):
        LayerWiseDecay(decay=bad)


def test_an_optimizer_of_the_users_own_has_rates_of_its_own(arguments: Arguments) -> None:
    model = _models.bert()
    own = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with pytest.raises(MethodError, match="llrd decides how weights are updated"):
        MethodTrainer(model, arguments(), methods=["llrd"], train_dataset=DATA, optimizers=(own, None))


class TestLayerWiseDecayContract(MethodContract):
    refused = {"albert": "at least 2 blocks"}  # noqa: RUF012  as the suite's own

    def make(self) -> Method:
        return LayerWiseDecay(decay=0.5)

    def neutral(self) -> Method:
        return LayerWiseDecay(decay=1.0)
