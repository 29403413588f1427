"""A run's layer replacement: the pretrained weights that it needs, and its table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from evenkeel.measure import layer_replacement, layer_weights
from evenkeel.study._scores import Said, judged
from evenkeel.tasks import TaskData

__all__ = ["PretrainedLayers", "replacement_table"]

_SCHEMA = pa.schema(
    [
        pa.field("k", pa.int32(), nullable=False),
        pa.field("part", pa.string(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("loss", pa.float64()),
        pa.field("failed", pa.bool_(), nullable=False),
    ]
)


class PretrainedLayers(TrainerCallback):
    """Copies a model's layers as they were loaded; what methods add to them, such as adapters, as training begins.

    Attributes:
        weights: parameters of the layers by their plain dotted names.
    """

    def __init__(self, model: nn.Module) -> None:
        """Copy the layers of ``model``, before any method changes it."""
        self.weights = layer_weights(model)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add what was not there when the model was loaded."""
        self.weights = {**layer_weights(kwargs["model"]), **self.weights}


def replacement_table(
    model: nn.Module, pretrained: Mapping[str, Any], predict: Callable[[], Mapping[str, Said]], *, data: TaskData
) -> pa.Table:
    """Put the pretrained weights back into the top k layers, and judge the predictions for k = 0..L.

    Args:
        model: the fine-tuned model; it is the same afterwards.
        pretrained: weights of its layers by name.
        predict: returns what the model says of each part, as the model is at the moment.
        data: the task.

    Returns:
        A row for each k and part: ``k``; ``part``; ``score`` in the task's metric; ``loss``, the mean cross-entropy in
        nats or the mean squared error; ``failed`` by the test that judges a run. Where an output is NaN or infinite,
        score and loss are null and ``failed`` is true.
    """
    found = layer_replacement(
        model, pretrained, lambda _: {part: judged(data, said) for part, said in predict().items()}
    )
    rows = [{"k": k, "part": part, **row} for k, parts in enumerate(found) for part, row in parts.items()]
    return pa.Table.from_pylist(rows, schema=_SCHEMA)
