"""Options that several commands share: what to train, on what, and by which recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "BatchSize",
    "Data",
    "Epochs",
    "GroupByLength",
    "LabelColumn",
    "LearningRate",
    "MaxLength",
    "MaxTrainSamples",
    "MetricName",
    "ModelName",
    "Precision",
    "Schedule",
    "TextColumns",
    "Train",
    "Validation",
    "Warmup",
    "WeightDecay",
    "task_fields",
]

_DATA, _RECIPE = "Data", "Training"

Data = Annotated[Path | None, typer.Option(help="Folder with the task's files (or set EVENKEEL_GLUE_DIR).", rich_help_panel=_DATA)]
Train = Annotated[Path | None, typer.Option(help="Your own training file: CSV, TSV, JSONL or Parquet.", rich_help_panel=_DATA)]
Validation = Annotated[Path | None, typer.Option(help="Your own validation file.", rich_help_panel=_DATA)]
TextColumns = Annotated[
    str | None, typer.Option("--text", help="Text column of your files, or two, separated by a comma.", rich_help_panel=_DATA)
]
LabelColumn = Annotated[str | None, typer.Option("--label", help="Label column of your files.", rich_help_panel=_DATA)]
MetricName = Annotated[
    str | None, typer.Option("--metric", help="accuracy, f1, macro_f1 or matthews.", rich_help_panel=_DATA)
]
MaxTrainSamples = Annotated[
    int | None, typer.Option(help="Train on so many examples, drawn with a fixed seed.", rich_help_panel=_DATA)
]
ModelName = Annotated[str, typer.Option("--model", help="A folder, a hub id, or tiny, which is built in.")]

LearningRate = Annotated[float, typer.Option("--learning-rate", "--lr", help="Peak learning rate.", rich_help_panel=_RECIPE)]
Epochs = Annotated[float, typer.Option(help="Epochs; of each phase, for methods that have phases.", rich_help_panel=_RECIPE)]
BatchSize = Annotated[int, typer.Option(help="Examples per optimizer step.", rich_help_panel=_RECIPE)]
MaxLength = Annotated[int, typer.Option(help="Longer texts are cut, in tokens.", rich_help_panel=_RECIPE)]
WeightDecay = Annotated[float, typer.Option(help="AdamW's weight decay.", rich_help_panel=_RECIPE)]
Warmup = Annotated[float, typer.Option(help="Share of steps in which the rate rises.", rich_help_panel=_RECIPE)]
Schedule = Annotated[str, typer.Option(help="linear, cosine or constant.", rich_help_panel=_RECIPE)]
Precision = Annotated[str, typer.Option(help="float32, bf16 or fp16 (autocast).", rich_help_panel=_RECIPE)]
GroupByLength = Annotated[bool, typer.Option(help="Batches of like lengths: less padding.", rich_help_panel=_RECIPE)]


def task_fields(
    task: str | None,
    *,
    data: Path | None,
    train: Path | None,
    validation: Path | None,
    text: str | None,
    label: str | None,
    metric: str | None,
    max_train_samples: int | None,
) -> dict[str, Any]:
    """Return the fields of a plan's task; people's own files need no name.

    Args:
        task: name of the task.
        data: see ``TaskSource``.
        train: see ``TaskSource``.
        validation: see ``TaskSource``.
        text: names of one or two columns, separated by a comma.
        label: see ``TaskSource``.
        metric: see ``TaskSource``.
        max_train_samples: see ``TaskSource``.

    Returns:
        The fields that were given.
    """
    own = train or validation
    fields = {
        "name": task or (own.parent.resolve().name if own else None),
        "data": data,
        "train": train,
        "validation": validation,
        "text": text.split(",") if text else None,
        "label": label,
        "metric": metric,
        "max_train_samples": max_train_samples,
    }
    return {key: value for key, value in fields.items() if value is not None}
