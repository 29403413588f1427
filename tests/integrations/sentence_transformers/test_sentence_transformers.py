"""ComponentClip in the trainer of sentence-transformers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import set_seed

from evenkeel import components
from evenkeel.integrations.transformers import ComponentClip
from evenkeel.models import find_model

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # importing it takes seconds, and it warns

LIMIT = 0.01
DATA = {
    "anchor": ["the cat sleeps", "a dog runs", "the bird sings", "a child reads"],
    "positive": ["a cat sleeps", "the dog runs", "a bird sings", "the child reads"],
}


def train(folder: Path, callbacks: list[Any], **options: Any) -> Any:
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.modules import Pooling

    set_seed(0)
    model = SentenceTransformer(modules=[Transformer(find_model("tiny").location), Pooling(128)], device="cpu").float()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    args = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=2,
        learning_rate=1e-3,
        per_device_train_batch_size=2,
        lr_scheduler_type="constant",
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        **{"max_grad_norm": 0} | options,
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_dict(DATA),
        loss=MultipleNegativesRankingLoss(model),
        callbacks=callbacks,
    )
    trainer.train()
    return trainer


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_all_in_one_component_is_its_own_clipping(tmp_path: Path) -> None:
    ours = train(tmp_path, [ComponentClip(LIMIT, by="global")])
    theirs, unclipped = train(tmp_path, [], max_grad_norm=LIMIT), train(tmp_path, [])
    torch.testing.assert_close(flat(ours.model), flat(theirs.model), rtol=0, atol=1e-5)
    assert (flat(ours.model) - flat(unclipped.model)).abs().max() > 1e-5


def test_every_component_of_the_encoder_is_clipped(tmp_path: Path) -> None:
    clip = ComponentClip({"query": 1e-6, "*": math.inf})
    trainer = train(tmp_path, [clip])
    assert clip.last is not None
    assert clip.last.names == tuple(part.name for part in components(trainer.model))
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert entry["clip_rate/query"] == 1.0
    assert entry["clip_rate/ffn_in"] == 0.0
