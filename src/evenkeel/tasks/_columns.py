"""Columns of tables, checked: texts, classes, numbers and answers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from evenkeel.errors import DataError, unknown_name
from evenkeel.tasks._metrics import metrics_for
from evenkeel.tasks._spec import Task

__all__ = ["answers", "class_labels", "classes_of", "number_labels", "texts"]

_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_REGRESSION = " or ".join(metrics_for("regression"))


def texts(task: Task, part: str, table: pa.Table, named: str) -> list[str]:
    """Read a text from a column, or from several that are joined by a space.

    Args:
        task: the task.
        part: what the messages call the table.
        table: the table.
        named: the column; or columns with ``+`` between them, where no column is called so.

    Returns:
        The texts, one for each row.

    Raises:
        DataError: if a column is not there, or a row has no text in it.
    """
    columns = [named] if named in table.column_names else [name.strip() for name in named.split("+")]
    found = [_texts(task, part, table, column) for column in columns]
    return found[0] if len(found) == 1 else [" ".join(pieces) for pieces in zip(*found, strict=True)]


def _texts(task: Task, part: str, table: pa.Table, column: str) -> list[str]:
    found = _column(task, part, table, column)
    for row, text in enumerate(found, start=1):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{task.name}, {part}: example {row} has no text in column '{column}'; fill it or drop it")
    return found


def _column(task: Task, part: str, table: pa.Table, name: str) -> list[Any]:
    if name not in table.column_names:
        raise DataError(f"{task.name}, {part}: " + unknown_name("column", name, table.column_names))
    if table.column_names.count(name) > 1:
        raise DataError(f"{task.name}, {part}: several columns are named '{name}'; rename all but one")
    return table[name].to_pylist()  # type: ignore[no-any-return]


def _filled(task: Task, part: str, table: pa.Table) -> list[Any]:
    values = _column(task, part, table, task.label)
    for row, value in enumerate(values, start=1):
        if value is None or value == "":
            raise DataError(
                f"{task.name}, {part}: example {row} has no label in column '{task.label}'; fill it or drop it"
            )
    return values


def number_labels(task: Task, part: str, table: pa.Table) -> list[float]:
    """Read the labels of a regression.

    Args:
        task: the task.
        part: what the messages call the table.
        table: the table.

    Returns:
        The numbers, one for each row, not all alike.

    Raises:
        DataError: if a label is missing or no finite number, or if all are alike.
    """
    found = []
    for row, value in enumerate(_filled(task, part, table), start=1):
        number = _number(value)
        if number is None:
            raise DataError(
                f"{task.name}, {part}: the label {value!r} of example {row} is no finite number, and {task.metric} is "
                f"a metric for regressions; correct it, or choose a metric for classes "
                f"({', '.join(metrics_for('classification', 2))})"
            )
        found.append(number)
    if len(set(found)) < 2:
        raise DataError(
            f"{task.name}: all examples of the {part} part have the label {found[0]}, so there is nothing to learn or "
            "to tell apart; check the label column"
        )
    return found


def answers(task: Task, part: str, table: pa.Table) -> list[str]:
    """Read the answers that a language model is to give.

    Args:
        task: the task.
        part: what the messages call the table.
        table: the table.

    Returns:
        The answers, one for each row, not all alike.

    Raises:
        DataError: if an answer is missing, blank or no text, or if all are alike.
    """
    found = [str(value) if isinstance(value, int | float) else value for value in _filled(task, part, table)]
    for row, text in enumerate(found, start=1):
        if not isinstance(text, str) or not text.strip():
            raise DataError(
                f"{task.name}, {part}: example {row} has no text in column '{task.label}'; fill it or drop it"
            )
    if len(set(found)) < 2:
        raise DataError(
            f"{task.name}: all examples of the {part} part have the answer {found[0]!r}, so there is nothing to learn "
            "or to tell apart; check the answers' column"
        )
    return found


def _number(value: object) -> float | None:
    if not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def class_labels(task: Task, part: str, table: pa.Table) -> list[str]:
    """Read the labels of a classification, as text.

    Args:
        task: the task.
        part: what the messages call the table.
        table: the table.

    Returns:
        The names of classes, one for each row.

    Raises:
        DataError: if a label is missing, or neither text nor a whole number.
    """
    values = _filled(task, part, table)
    for row, value in enumerate(values, start=1):
        if isinstance(value, float) or not isinstance(value, str | int):
            raise DataError(
                f"{task.name}, {part}: the label {value!r} of example {row} is no class; labels are text or whole "
                f"numbers (for a regression choose the metric {_REGRESSION})"
            )
    return [str(int(value)) if isinstance(value, bool) else str(value) for value in values]


def classes_of(task: Task, labels: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return the classes of the training part in the order of their numbers; the others must know no more.

    Args:
        task: the task.
        labels: the labels of each part, as text.

    Returns:
        The names of the classes as the data has them.

    Raises:
        DataError: if the labels look like no classes, a part has one only, another part has one that training lacks,
            or the metric is not for so many.
    """
    trained = set(labels["train"])
    fractions = all(_NUMBER.fullmatch(label) for label in trained) and any("." in label for label in trained)
    if fractions or len(trained) > max(20, len(labels["train"]) // 2):
        raise DataError(
            f"{task.name}: the column '{task.label}' holds {len(trained)} different values such as '{max(trained)}', "
            "which look like no classes; name the label's column with --label, or for a regression choose the metric "
            f"{_REGRESSION}"
        )
    for part, found in labels.items():
        if len(set(found)) < 2:
            raise DataError(
                f"{task.name}: all examples of the {part} part have the label '{found[0]}', so there is nothing to "
                "learn or to tell apart; check the label column"
            )
        if set(found) - trained:
            raise DataError(
                f"{task.name}: the {part} part has the label '{min(set(found) - trained)}', which no training example "
                f"has ({', '.join(sorted(trained)[:20])}); check both files"
            )
    classes = _in_order(task, trained)
    if task.metric == "f1" and len(classes) > 2:
        raise DataError(f"{task.name}: the metric f1 is for two classes, and there are {len(classes)}; use macro_f1")
    return classes


def _in_order(task: Task, trained: set[str]) -> tuple[str, ...]:
    """Order labels as the task does, where it is a known one; else as numbers, else by name."""
    if not task.classes:
        numbers = all(_NUMBER.fullmatch(label) for label in trained)
        return tuple(sorted(trained, key=float) if numbers else sorted(trained))
    for names in (task.classes, tuple(map(str, range(len(task.classes))))):
        if trained <= set(names):
            return names
    numbered = ", ".join(f"{number} ({name})" for number, name in enumerate(task.classes))
    raise DataError(
        f"{task.name}: the labels are {numbered}, but the training part has '{max(trained)}'; give data of another "
        "kind as your own files (--train, --validation)"
    )
