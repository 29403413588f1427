"""Options that several commands share: on what data to train, and by which recipe."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from evenkeel.errors import PlanError

__all__ = ["ModelName", "Shared", "method_names", "with_shared_options"]

_DATA, _RECIPE = "Data", "Training"

Data = Annotated[
    Path | None, typer.Option(help="Folder with the task's files (or set EVENKEEL_GLUE_DIR).", rich_help_panel=_DATA)
]
Train = Annotated[
    Path | None, typer.Option(help="Your own training file: CSV, TSV, JSONL or Parquet.", rich_help_panel=_DATA)
]
Validation = Annotated[Path | None, typer.Option(help="Your own validation file.", rich_help_panel=_DATA)]
Test = Annotated[Path | None, typer.Option(help="Your own file of held-out examples.", rich_help_panel=_DATA)]
TextColumns = Annotated[
    str | None,
    typer.Option("--text", help="Text column of your data, or two, separated by a comma.", rich_help_panel=_DATA),
]
LabelColumn = Annotated[str | None, typer.Option("--label", help="Label column of your data.", rich_help_panel=_DATA)]
MetricName = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="accuracy, f1, macro_f1 or matthews; for numbers pearson or spearman; for written answers exact_match or "
        "inverse_perplexity.",
        rich_help_panel=_DATA,
    ),
]
MaxTrainSamples = Annotated[
    int | None, typer.Option(help="Train on so many examples, drawn with a fixed seed.", rich_help_panel=_DATA)
]
TestSplit = Annotated[
    str | None, typer.Option(help="half: hold out half of the validation part as test part.", rich_help_panel=_DATA)
]
SplitSeed = Annotated[
    int | None,
    typer.Option(help="Draw training and validation part anew, as large as they are.", rich_help_panel=_DATA),
]
ModelName = Annotated[str, typer.Option("--model", help="A folder, a hub id, or tiny, which is built in.")]

LearningRate = Annotated[
    float, typer.Option("--learning-rate", "--lr", help="Peak learning rate.", rich_help_panel=_RECIPE)
]
Epochs = Annotated[
    float, typer.Option(help="Epochs; of each phase, for methods that have phases.", rich_help_panel=_RECIPE)
]
BatchSize = Annotated[int, typer.Option(help="Examples per optimizer step.", rich_help_panel=_RECIPE)]
MaxLength = Annotated[int, typer.Option(help="Longer texts are cut, in tokens.", rich_help_panel=_RECIPE)]
WeightDecay = Annotated[float, typer.Option(help="AdamW's weight decay.", rich_help_panel=_RECIPE)]
Warmup = Annotated[float, typer.Option(help="Share of steps in which the rate rises.", rich_help_panel=_RECIPE)]
Schedule = Annotated[str, typer.Option(help="linear, cosine or constant.", rich_help_panel=_RECIPE)]
Precision = Annotated[
    str, typer.Option(help="float32, bf16 or fp16 (autocast); auto: as the device likes it.", rich_help_panel=_RECIPE)
]
GroupByLength = Annotated[bool, typer.Option(help="Batches of like lengths: less padding.", rich_help_panel=_RECIPE)]


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What the shared options say.

    Attributes:
        task: fields of the plan's task, without its name; only those that were given.
        training: fields of the plan's recipe.
    """

    task: dict[str, Any]
    training: dict[str, Any]

    def named(self, task: str | None) -> list[dict[str, Any]]:
        """Return the plan's tasks.

        Args:
            task: names of tasks, separated by commas; people's own files need none.

        Returns:
            One mapping for each task.

        Raises:
            PlanError: if there is neither a name nor a file.
        """
        own: Path | None = self.task.get("train") or self.task.get("validation")
        if task is not None:
            return [{**self.task, "name": name.strip()} for name in task.split(",")]
        if own is None:
            raise PlanError(
                "no task was given; name one with --task, or give your own files with --train and --validation"
            )
        return [{**self.task, "name": own.resolve().parent.name}]


def _shared(
    data: Data = None,
    train: Train = None,
    validation: Validation = None,
    test: Test = None,
    text: TextColumns = None,
    label: LabelColumn = None,
    metric: MetricName = None,
    max_train_samples: MaxTrainSamples = None,
    test_split: TestSplit = None,
    split_seed: SplitSeed = None,
    learning_rate: LearningRate = 2e-5,
    epochs: Epochs = 3.0,
    batch_size: BatchSize = 16,
    max_length: MaxLength = 128,
    weight_decay: WeightDecay = 0.0,
    warmup: Warmup = 0.0,
    schedule: Schedule = "linear",
    precision: Precision = "float32",
    group_by_length: GroupByLength = True,
) -> Shared:
    files = {
        "data": data,
        "train": train,
        "validation": validation,
        "test": test,
        "text": [name.strip() for name in text.split(",")] if text else None,
        "label": label,
        "metric": metric,
        "max_train_samples": max_train_samples,
        "test_split": test_split,
        "split_seed": split_seed,
    }
    return Shared(
        task={key: value for key, value in files.items() if value is not None},
        training={
            "learning_rate": learning_rate,
            "epochs": epochs,
            "batch_size": batch_size,
            "max_length": max_length,
            "weight_decay": weight_decay,
            "warmup": warmup,
            "schedule": schedule,
            "precision": precision,
            "group_by_length": group_by_length,
        },
    )


def method_names(text: str) -> list[str]:
    """Split at the commas that do not stand in a mapping, which a method's option may be.

    Args:
        text: names of methods with their options.

    Returns:
        The names.

    Example:
        >>> method_names("full, component-clip:max_norm={query: 1, norm: 2}")
        ['full', 'component-clip:max_norm={query: 1, norm: 2}']
    """
    return [name.strip() for name in re.split(r",(?![^{]*\})", text)]


def with_shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the shared options; it receives them as its argument ``shared``.

    Args:
        command: a function for Typer, with an argument ``shared`` and options of its own.

    Returns:
        The function that Typer is to see: the command's own options first, then the shared ones.
    """
    own = [item for item in inspect.signature(command, eval_str=True).parameters.values() if item.name != "shared"]
    common = list(inspect.signature(_shared, eval_str=True).parameters.values())

    @functools.wraps(command)
    def seen(**values: Any) -> None:
        shared = _shared(**{item.name: values.pop(item.name) for item in common})
        command(**values, shared=shared)

    parameters = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in (*own, *common)]
    seen.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return seen
