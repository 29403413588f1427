"""Training arguments that are quick and say nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.integrations._training import BATCH, EPSILON, RATE
from transformers import TrainingArguments


@pytest.fixture
def arguments(tmp_path: Path) -> Callable[..., TrainingArguments]:
    def make(**changes: Any) -> TrainingArguments:
        plain: dict[str, Any] = {
            "output_dir": str(tmp_path),
            "learning_rate": RATE,
            "adam_epsilon": EPSILON,
            "lr_scheduler_type": "constant",
            "num_train_epochs": 1,
            "per_device_train_batch_size": BATCH,
            "train_sampling_strategy": "sequential",
            "max_grad_norm": 0,
            "weight_decay": 0.0,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            "dataloader_pin_memory": False,
        }
        return TrainingArguments(**plain | changes)

    return make
