"""From the name of a task, or from somebody's own files, to checked data."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from evenkeel.errors import DataError, unknown_name
from evenkeel.tasks._files import SUFFIXES, find_part, read_table
from evenkeel.tasks._metrics import METRICS
from evenkeel.tasks._spec import KNOWN, Task, TaskData, TaskSource

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["GLUE_DIR", "load_task"]

GLUE_DIR = "EVENKEEL_GLUE_DIR"
_HUB = "nyu-mll/glue"
_SUBSET_SEED = 0  # one subset for every run of every study: seeds of runs do not choose the data
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_USUAL_TEXT = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("sentence",), ("text",))


def load_task(source: TaskSource) -> TaskData:
    """Read and check a task's data.

    Args:
        source: where the data comes from. A known task is read from ``source.data``, else from the folder that the
            environment variable ``EVENKEEL_GLUE_DIR`` names, else from the hub; the embedded ones are made.

    Returns:
        The data, with labels as integers.

    Raises:
        DataError: if the task is unknown or its data cannot be read, has a column or label missing, has one class
            only, or has a label in validation that training lacks.
    """
    own = source.train is not None or source.validation is not None
    if not own and source.name not in KNOWN:
        raise DataError(
            unknown_name("task", source.name, KNOWN)
            + ". For your own data give both a training and a validation file (--train, --validation)"
        )
    tables = _own_files(source) if own else _known(source)
    task = _task(source, tables["train"].column_names)
    classes = _classes(task, tables)
    parts = {part: _part(task, classes, part, table) for part, table in tables.items()}
    if source.max_train_samples is not None:
        parts["train"] = _subset(parts["train"], source.max_train_samples)
        if len(set(parts["train"]["label"])) < len(classes):
            raise DataError(
                f"{task.name}: the {source.max_train_samples} training examples drawn hold not every class; take more"
            )
    return TaskData(
        task=task,
        classes=task.classes or classes,
        train=parts["train"],
        validation=parts["validation"],
        test=parts.get("test"),
        fingerprint=_fingerprint(parts),
    )


def _own_files(source: TaskSource) -> dict[str, pa.Table]:
    if source.train is None or source.validation is None:
        given, missing = ("training", "validation") if source.train else ("validation", "training")
        raise DataError(f"only the {given} file was given; give the {missing} file too")
    return {"train": read_table(source.train), "validation": read_table(source.validation)}


def _known(source: TaskSource) -> dict[str, pa.Table]:
    family, _, name = source.name.rpartition("/")
    if family == "grammar":
        return _embedded(name)
    folder = source.data or (Path(os.environ[GLUE_DIR]) if os.environ.get(GLUE_DIR) else None)
    return _from_folder(folder, source.name) if folder else _from_hub(source.name)


def _embedded(name: str) -> dict[str, pa.Table]:
    from evenkeel.tasks.grammar import rows

    return {part: pa.table(rows(name, part)) for part in ("train", "validation", "test")}


def _from_folder(folder: Path, name: str) -> dict[str, pa.Table]:
    if not folder.is_dir():
        raise DataError(f"there is no folder '{folder}' to read {name} from; give the folder of the files with --data")
    places = [folder / name]
    if folder.name == name or folder.name not in KNOWN:  # the folder of another task is no place to look
        places.append(folder)
    for place in places:
        paths = {part: find_part(place, part) for part in ("train", "validation")}
        if all(paths.values()):
            return {part: read_table(path) for part, path in paths.items() if path}
    raise DataError(
        f"'{folder}' holds no {name}: there should be '{folder / name}/train' and '.../validation', each ending in "
        f"one of {', '.join(SUFFIXES)}"
    )


def _from_hub(name: str) -> dict[str, pa.Table]:
    import datasets

    try:
        loaded = datasets.load_dataset(_HUB, name)
    except Exception as error:  # the hub's client raises many kinds, and none of them says what to do
        reason = f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"
        raise DataError(
            f"{name} could not be loaded from the hub ({reason}); without a network, point to a folder that "
            f"holds {name}/train.tsv and {name}/validation.tsv, by --data or by the environment variable {GLUE_DIR}"
        ) from error
    return {part: loaded[part].data.table for part in ("train", "validation")}


def _task(source: TaskSource, columns: Sequence[str]) -> Task:
    base = KNOWN.get(source.name)
    if source.train is not None or base is None:
        base = Task(name=source.name, text=source.text or _usual_text(source, columns))
    task = replace(
        base,
        text=source.text or base.text,
        label=source.label or base.label,
        metric=source.metric or base.metric,
    )
    if task.metric not in METRICS:
        raise DataError(unknown_name("metric", task.metric, METRICS))
    if len(task.text) not in (1, 2):
        raise DataError(
            f"{task.name}: {len(task.text)} text columns were named ({', '.join(task.text)}); name one or two"
        )
    return task


def _usual_text(source: TaskSource, columns: Sequence[str]) -> tuple[str, ...]:
    for names in _USUAL_TEXT:
        if set(names) <= set(columns):
            return names
    raise DataError(
        f"'{source.train}' has the columns {', '.join(columns)}; name the text column or columns with --text, and the "
        "label's with --label"
    )


def _column(task: Task, part: str, table: pa.Table, name: str) -> list[Any]:
    if name not in table.column_names:
        raise DataError(f"{task.name}, {part}: " + unknown_name("column", name, table.column_names))
    if table.column_names.count(name) > 1:
        raise DataError(f"{task.name}, {part}: several columns are named '{name}'; rename all but one")
    return table[name].to_pylist()  # type: ignore[no-any-return]


def _labels(task: Task, part: str, table: pa.Table) -> list[str]:
    values = _column(task, part, table, task.label)
    for row, value in enumerate(values, start=1):
        if value is None or value == "":
            raise DataError(
                f"{task.name}, {part}: example {row} has no label in column '{task.label}'; fill it or drop it"
            )
        if isinstance(value, float) or not isinstance(value, str | int):
            raise DataError(
                f"{task.name}, {part}: the label {value!r} of example {row} is no class; labels are text or whole "
                "numbers (regression is not supported yet)"
            )
    return [str(int(value)) if isinstance(value, bool) else str(value) for value in values]


def _classes(task: Task, tables: Mapping[str, pa.Table]) -> tuple[str, ...]:
    """Return the classes of the training part in the order of their numbers; the others must know no more."""
    labels = {part: _labels(task, part, table) for part, table in tables.items()}
    trained = set(labels["train"])
    fractions = all(_NUMBER.fullmatch(label) for label in trained) and any("." in label for label in trained)
    if fractions or len(trained) > max(20, len(labels["train"]) // 2):
        raise DataError(
            f"{task.name}: the column '{task.label}' holds {len(trained)} different values such as '{max(trained)}', "
            "which look like no classes; name the label's column with --label (regression is not supported yet)"
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


def _part(task: Task, classes: Sequence[str], part: str, table: pa.Table) -> Dataset:
    from datasets import Dataset

    columns: dict[str, list[Any]] = {}
    for name, column in zip(("text", "text_pair"), task.text, strict=False):
        texts = _column(task, part, table, column)
        for row, text in enumerate(texts, start=1):
            if not isinstance(text, str) or not text.strip():
                raise DataError(
                    f"{task.name}, {part}: example {row} has no text in column '{column}'; fill it or drop it"
                )
        columns[name] = texts
    number = {label: index for index, label in enumerate(classes)}
    columns["label"] = [number[label] for label in _labels(task, part, table)]
    return Dataset.from_dict(columns)


def _subset(train: Dataset, size: int) -> Dataset:
    if size < 1:
        raise DataError(
            f"max_train_samples must be positive, but got {size}; leave it out to keep all {len(train)} examples"
        )
    chosen = np.random.default_rng(_SUBSET_SEED).permutation(len(train))[:size]
    return train.select(sorted(chosen.tolist()))


def _fingerprint(parts: Mapping[str, Dataset]) -> str:
    digest = hashlib.sha256()
    for part, data in sorted(parts.items()):
        for name in data.column_names:
            digest.update(f"\x00{part}\x00{name}".encode())
            for value in data[name]:
                digest.update(f"\x00{value}".encode())
    return digest.hexdigest()[:16]
