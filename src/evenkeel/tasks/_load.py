"""From the name of a task, or from somebody's own files, to checked data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from evenkeel.errors import DataError, unknown_name
from evenkeel.tasks._columns import answers, class_labels, classes_of, number_labels, texts
from evenkeel.tasks._known import KNOWN
from evenkeel.tasks._metrics import METRICS, metrics_for
from evenkeel.tasks._parts import halves, redrawn, subset
from evenkeel.tasks._sources import Found, find_tables
from evenkeel.tasks._spec import Task, TaskData, TaskSource

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["load_task"]

_USUAL_TEXT = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("sentence",), ("text",))
_USUAL_PROMPT = (("prompt",), ("question",), ("text",))
_OWN_PARTS = ("train", "validation", "test")


def load_task(source: TaskSource) -> TaskData:
    """Read and check a task's data.

    Args:
        source: where the data comes from. A known task is read from ``source.data``, else from the folder that the
            environment variable ``EVENKEEL_GLUE_DIR`` names, else from the hub; the embedded ones are made.

    Returns:
        The data, with labels as integers, as numbers for a regression, as answers for a language model.

    Raises:
        DataError: if the task is unknown or its data cannot be read, has a column or label missing, has one class
            only, or has a label in validation that training lacks, also after a split was drawn anew; if it has a test
            part and is to be split.
    """
    found = find_tables(source)
    task = _task(source, found)
    classes, labels = _labels(task, found.tables)
    whole = {part: _part(task, part, table, labels[part]) for part, table in found.tables.items()}
    parts = _cut(source, task, whole, classes=len(classes))
    fingerprint = _fingerprint(parts)
    if source.split_seed is not None:
        drawn = redrawn(task, whole["train"], whole["validation"], seed=source.split_seed, classes=len(classes))
        parts = _cut(source, task, whole | drawn, classes=len(classes))
    return TaskData(
        task=task,
        classes=None if task.problem == "causal-lm" else task.classes or classes,
        train=parts["train"],
        validation=parts["validation"],
        test=parts.get("test"),
        fingerprint=fingerprint,
        more={part: data for part, data in parts.items() if part not in _OWN_PARTS},
    )


def _cut(source: TaskSource, task: Task, parts: dict[str, Dataset], *, classes: int) -> dict[str, Dataset]:
    """Hold out half of validation, and keep fewer training examples, where that is asked for."""
    cut = dict(parts)
    if source.test_split is not None:
        if "test" in parts:
            raise DataError(
                f"{task.name}: the data has a labelled test part of its own, so validation is not to be split; leave "
                "test_split out"
            )
        cut |= halves(task, parts["validation"])
    if source.max_train_samples is not None:
        cut["train"] = subset(task, parts["train"], source.max_train_samples, classes=classes)
    return cut


def _task(source: TaskSource, found: Found) -> Task:
    base = None if source.train is not None else KNOWN.get(source.name)
    task = base or _unknown(source, found)
    task = replace(
        task,
        text=source.text or task.text,
        label=source.label or task.label,
        metric=source.metric or task.metric,
    )
    if task.metric not in METRICS:
        raise DataError(unknown_name("metric", task.metric, METRICS))
    if base is not None and base.problem != task.problem:
        raise DataError(
            f"{task.name} is a {base.problem}, and {task.metric} scores none; choose one of "
            f"{', '.join(metrics_for(base.problem, len(base.classes)))}"
        )
    most = 1 if task.problem == "causal-lm" else 2
    if not 1 <= len(task.text) <= most:
        raise DataError(
            f"{task.name}: {len(task.text)} text columns were named ({', '.join(task.text)}); name one"
            + (" or two" if most == 2 else " that holds the prompt")
        )
    return task if task.problem == "classification" else replace(task, classes=())


def _unknown(source: TaskSource, found: Found) -> Task:
    """Return a task that is known by no name, as its metric and the usual names of columns have it."""
    usual = _USUAL_PROMPT if source.writes else _USUAL_TEXT
    text = source.text or _usual_text(source, found.tables["train"].column_names, usual)
    return Task(name=source.name, text=text, label=source.label_column, classes=found.classes)


def _usual_text(source: TaskSource, columns: Sequence[str], usual: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    for names in usual:
        if set(names) <= set(columns):
            return names
    raise DataError(
        f"'{source.train or source.name}' has the columns {', '.join(columns)}; name the text column or columns with "
        "--text, and the label's with --label"
    )


def _labels(task: Task, tables: Mapping[str, pa.Table]) -> tuple[tuple[str, ...], Mapping[str, Sequence[Any]]]:
    """Return the classes, where labels are such, and the labels of each part."""
    if task.problem != "classification":
        read: Callable[..., Sequence[Any]] = number_labels if task.problem == "regression" else answers
        return (), {part: read(task, part, table) for part, table in tables.items()}
    named = {part: class_labels(task, part, table) for part, table in tables.items()}
    classes = classes_of(task, named)
    number = {label: index for index, label in enumerate(classes)}
    return classes, {part: [number[label] for label in found] for part, found in named.items()}


def _part(task: Task, part: str, table: pa.Table, labels: Sequence[Any]) -> Dataset:
    from datasets import Dataset

    columns: dict[str, Sequence[Any]] = {
        name: texts(task, part, table, column) for name, column in zip(("text", "text_pair"), task.text, strict=False)
    }
    return Dataset.from_dict({**columns, "label": labels})


def _fingerprint(parts: Mapping[str, Dataset]) -> str:
    digest = hashlib.sha256()
    for part, data in sorted(parts.items()):
        for name in data.column_names:
            digest.update(f"\x00{part}\x00{name}".encode())
            for value in data[name]:
                digest.update(f"\x00{value}".encode())
    return digest.hexdigest()[:16]
