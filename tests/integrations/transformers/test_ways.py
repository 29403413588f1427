"""ComponentClip in other ways of training: compiled, checkpointed, sequence to sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests import _models
from tests.integrations._training import DATA, assert_same_weights, by_hand, mean_over_all
from torch.utils.data import Dataset
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
    set_seed,
)

from evenkeel import components
from evenkeel.integrations.transformers import ComponentClip

Arguments = Callable[..., TrainingArguments]
MAX_NORM = 0.02


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about itself
def test_a_compiled_model_is_clipped_as_a_plain_one(arguments: Arguments) -> None:
    ours, theirs = _models.bert(), _models.bert()
    args = arguments(torch_compile=True, torch_compile_backend="eager")
    clip = ComponentClip(MAX_NORM)
    trainer = Trainer(ours, args, train_dataset=DATA, compute_loss_func=mean_over_all, callbacks=[clip])
    trainer.train()
    assert isinstance(trainer.model_wrapped, torch._dynamo.OptimizedModule)  # compiling was on
    by_hand(theirs, max_norm=MAX_NORM)
    assert_same_weights(ours, theirs, tolerance=1e-5)
    assert clip.last is not None
    assert clip.last.names == tuple(part.name for part in components(theirs))


def test_activation_checkpointing_changes_nothing(arguments: Arguments) -> None:
    ours, theirs = _models.bert(), _models.bert()
    ours.activation_checkpointing_enable()
    assert ours.is_activation_checkpointing
    trainer = Trainer(
        ours, arguments(), train_dataset=DATA, compute_loss_func=mean_over_all, callbacks=[ComponentClip(MAX_NORM)]
    )
    trainer.train()
    assert ours.is_activation_checkpointing
    by_hand(theirs, max_norm=MAX_NORM)
    assert_same_weights(ours, theirs)


class Pairs(Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return len(DATA)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": DATA.ids[index], "labels": DATA.ids[index].flip(0)}


def bart() -> BartForConditionalGeneration:
    set_seed(0)
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=_models.VOCABULARY,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            max_position_embeddings=16,
            dropout=0.0,
            pad_token_id=0,
            decoder_start_token_id=1,
            forced_eos_token_id=None,
        )
    )


def test_sequence_to_sequence_models_are_clipped_by_stack(tmp_path: Any, arguments: Arguments) -> None:
    plain = arguments().to_dict()
    wanted = ("learning_rate", "adam_epsilon", "lr_scheduler_type", "max_grad_norm", "weight_decay", "save_strategy")
    args = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path),
        **{name: plain[name] for name in wanted},
        max_steps=2,
        per_device_train_batch_size=4,
        train_sampling_strategy="sequential",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    ours, theirs = bart(), bart()
    limits = {"decoder.*": 0.01, "*": 0.05}
    clip = ComponentClip(limits)
    Seq2SeqTrainer(ours, args, train_dataset=Pairs(), callbacks=[clip]).train()
    assert clip.last is not None
    assert {round(limit, 4) for limit in clip.last.thresholds.tolist()} == {0.01, 0.05}

    decoder = {part.name for part in components(theirs).select("decoder.*")}
    assert any("decoder" in name for name in decoder)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=args.learning_rate, eps=args.adam_epsilon, weight_decay=0.0)
    for start in (0, 4):
        ids = DATA.ids[start : start + 4]
        optimizer.zero_grad()
        theirs(input_ids=ids, labels=ids.flip(1)).loss.backward()
        for name, parameter in theirs.named_parameters():
            torch.nn.utils.clip_grad_norm_([parameter], 0.01 if name in decoder else 0.05)
        optimizer.step()
    assert_same_weights(ours, theirs, tolerance=1e-5)
