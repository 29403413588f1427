"""A training by several processes, as torchrun starts it: ``python -m torch.distributed.run ... _ddp.py FOLDER``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from tests import _models
from transformers import PrinterCallback, TrainingArguments

from evenkeel.integrations.transformers import MethodTrainer

ROWS, STEPS = _models.Rows(32), 4
DROPPING = ("r-drop",)  # which asks for dropout


def train(method: str, *, rows: int, accumulated: int, folder: str) -> torch.Tensor:
    """Return the weights after four steps, each of ``rows * accumulated`` rows in this process."""
    arguments = TrainingArguments(
        output_dir=folder,
        learning_rate=1e-2,
        adam_epsilon=1e-3,
        lr_scheduler_type="constant",
        max_steps=STEPS,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulated,
        train_sampling_strategy="sequential",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        ddp_backend="gloo" if "RANK" in os.environ else None,
    )
    model = _models.bert(hidden_dropout_prob=0.1 if method in DROPPING else 0.0)
    trainer = MethodTrainer(model, arguments, methods=[method], train_dataset=ROWS)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])


def main(folder: Path) -> None:
    """Train by each method that the file ``methods.json`` names, and save the weights of each rank."""
    rank = int(os.environ["RANK"])
    jobs: list[Any] = json.loads((folder / "methods.json").read_text())
    found = {}
    for method, accumulated in jobs:
        weights = train(method, rows=4 // accumulated, accumulated=accumulated, folder=str(folder))
        found[f"{method} x {accumulated}"] = weights
    torch.save(found, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
