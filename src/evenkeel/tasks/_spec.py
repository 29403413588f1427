"""What a task is, and the tasks that are known by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["KNOWN", "Task", "TaskData", "TaskSource"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """Which columns are read, and how predictions are scored.

    Attributes:
        name: the name in plans and reports.
        text: one text column, or two.
        label: the label's column.
        metric: the score of a run, one of ``METRICS``.
        classes: names of the labels in the order of their numbers, where the data itself has only numbers.
    """

    name: str
    text: tuple[str, ...]
    label: str = "label"
    metric: str = "accuracy"
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TaskSource:
    """Where a task's data comes from.

    Attributes:
        name: a task of ``KNOWN``; or any name, where ``train`` and ``validation`` are files.
        data: a folder with ``train`` and ``validation`` files, itself or in a folder of the task's name.
        train: the training file, for people's own data.
        validation: the validation file, for people's own data.
        text: text columns; None takes the task's own, or those of the usual names.
        label: the label's column; None takes the task's own, or ``label``.
        metric: the metric; None takes the task's own, or accuracy.
        max_train_samples: keep this many training examples, drawn once with a fixed seed; None keeps all.
    """

    name: str
    data: Path | None = None
    train: Path | None = None
    validation: Path | None = None
    text: tuple[str, ...] | None = None
    label: str | None = None
    metric: str | None = None
    max_train_samples: int | None = None


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """A task's data, read and checked.

    Attributes:
        task: what was read.
        classes: names of the labels; label ``i`` is ``classes[i]``.
        train: columns ``text`` or ``text``, ``text_pair``, and ``label``, an integer.
        validation: the same columns.
        test: the same columns, or None where there is no labelled test part.
        fingerprint: hash of all texts and labels.
    """

    task: Task
    classes: tuple[str, ...]
    train: Dataset
    validation: Dataset
    test: Dataset | None
    fingerprint: str


_PAIR = ("sentence1", "sentence2")

KNOWN: dict[str, Task] = {
    task.name: task
    for task in (
        Task(name="rte", text=_PAIR, classes=("entailment", "not_entailment")),
        Task(name="mrpc", text=_PAIR, metric="f1", classes=("not_equivalent", "equivalent")),
        Task(name="cola", text=("sentence",), metric="matthews", classes=("unacceptable", "acceptable")),
        Task(name="grammar/acceptability", text=("sentence",), classes=("unacceptable", "acceptable")),
        Task(name="grammar/entailment", text=_PAIR, classes=("entailment", "not_entailment")),
        Task(name="grammar/paraphrase", text=_PAIR, classes=("not_paraphrase", "paraphrase")),
    )
}
