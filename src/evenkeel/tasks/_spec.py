"""What a task is, where its data comes from, and what reading it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from evenkeel.tasks._metrics import METRICS, Problem, metrics_for

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["HUB", "Task", "TaskData", "TaskSource"]

HUB = "hub:"


@dataclass(frozen=True, kw_only=True)
class Task:
    """Which columns are read, and how predictions are scored.

    Attributes:
        name: the name in plans and reports.
        text: one text, or two, or a prompt; each a column, or columns with ``+`` between them, which a space joins.
        label: the label's column.
        metric: the score of a run, one of ``METRICS``; it says whether labels are classes, numbers or answers.
        classes: names of the labels in the order of their numbers, where the data itself has only numbers.
        hub: the data set on the hub and its configuration; empty for what is not there.
        validation: what the validation part is called where the data comes from.
        more: further labelled parts that every run is scored on beside validation.
    """

    name: str
    text: tuple[str, ...]
    label: str = "label"
    metric: str = "accuracy"
    classes: tuple[str, ...] = ()
    hub: tuple[str, str] | tuple[()] = ()
    validation: str = "validation"
    more: tuple[str, ...] = ()

    @property
    def problem(self) -> Problem:
        """Whether labels are classes, numbers or answers."""
        return METRICS[self.metric].problem


@dataclass(frozen=True, kw_only=True)
class TaskSource:
    """Where a task's data comes from.

    Attributes:
        name: a task of ``KNOWN``; ``hub:NAME`` or ``hub:NAME:CONFIGURATION``, any data set of the hub; or any name,
            where ``train`` and ``validation`` are files.
        data: a folder with ``train`` and ``validation`` files, itself or in a folder of the task's name; for ``hub:``,
            a copy of the data set.
        train: the training file, for people's own data.
        validation: the validation file, for people's own data.
        test: a file of labelled examples that are held out, for people's own data.
        text: text columns; None takes the task's own, or those of the usual names.
        label: the label's column; None takes the task's own, or ``label``, or ``answer`` where answers are written.
        metric: the metric; None takes the task's own, or accuracy. It says what kind of a task people's own data is.
        max_train_samples: keep this many training examples, drawn once with a fixed seed; None keeps all.
        test_split: ``"half"`` holds out half of the validation part as a test part, drawn once with a fixed seed, where
            the data has none; None leaves the parts as they are.
        split_seed: draws anew which examples are to train and which to validate on, as many of each as before; None
            leaves them as they are.
    """

    name: str
    data: Path | None = None
    train: Path | None = None
    validation: Path | None = None
    test: Path | None = None
    text: tuple[str, ...] | None = None
    label: str | None = None
    metric: str | None = None
    max_train_samples: int | None = None
    test_split: Literal["half"] | None = None
    split_seed: int | None = None

    @property
    def writes(self) -> bool:
        """Whether the metric asks for answers that a language model writes."""
        return self.metric in metrics_for("causal-lm")

    @property
    def label_column(self) -> str:
        """The label's column, as it is named or usual."""
        return self.label or ("answer" if self.writes else "label")


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """A task's data, read and checked.

    Attributes:
        task: what was read.
        classes: names of the labels; label ``i`` is ``classes[i]``. Empty for a regression, None for answers.
        train: columns ``text`` or ``text``, ``text_pair``, and ``label``: an integer, a number for a regression, or a
            text that answers.
        validation: the same columns.
        test: the same columns, or None where there is no labelled test part.
        fingerprint: hash of all texts and labels; of a split that was drawn anew, those of the parts as they were.
        more: further parts to score, by name.
    """

    task: Task
    classes: tuple[str, ...] | None
    train: Dataset
    validation: Dataset
    test: Dataset | None
    fingerprint: str
    more: Mapping[str, Dataset] = field(default_factory=dict)

    @property
    def problem(self) -> Problem:
        """Whether labels are classes, numbers or answers."""
        return self.task.problem

    @property
    def scored(self) -> dict[str, Dataset]:
        """The parts that runs are scored on: validation, test where there is one, further ones."""
        test = {} if self.test is None else {"test": self.test}
        return {"validation": self.validation, **test, **self.more}
