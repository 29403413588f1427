"""From where a task's data lies to its tables, one for each part."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute

from evenkeel.errors import DataError, unknown_name
from evenkeel.tasks._files import SUFFIXES, find_part, read_table
from evenkeel.tasks._known import KNOWN
from evenkeel.tasks._spec import HUB, Task, TaskSource

if TYPE_CHECKING:
    from datasets import DatasetDict

__all__ = ["GLUE_DIR", "Found", "find_tables"]

GLUE_DIR = "EVENKEEL_GLUE_DIR"
_VALIDATIONS = ("validation", "valid", "val", "dev", "validation_matched")


@dataclass(frozen=True, kw_only=True)
class Found:
    """Tables as they were found.

    Attributes:
        tables: the table of each part: ``train``, ``validation``, and ``test`` or others where there are any.
        classes: names of the labels in the order of their numbers, where the data tells them.
    """

    tables: Mapping[str, pa.Table]
    classes: tuple[str, ...] = ()


def find_tables(source: TaskSource) -> Found:
    """Find the tables of a task.

    Args:
        source: where the data comes from.

    Returns:
        The tables, unchecked.

    Raises:
        DataError: if the task is unknown, or a part is missing or cannot be read.
    """
    if source.train is not None or source.validation is not None or source.test is not None:
        return Found(tables=_own_files(source))
    if source.name.startswith(HUB):
        return _any_of_hub(source)
    if source.name not in KNOWN:
        raise DataError(
            unknown_name("task", source.name, KNOWN)
            + ". For your own data give both a training and a validation file (--train, --validation), for a data set "
            f"of the hub write {HUB}NAME"
        )
    return Found(tables=_known(source))


def _own_files(source: TaskSource) -> dict[str, pa.Table]:
    if source.train is None or source.validation is None:
        given = next(name for name in ("train", "validation", "test") if getattr(source, name) is not None)
        missing = "validation" if source.train else "training"
        raise DataError(
            f"only the {'training' if given == 'train' else given} file was given; give the {missing} file too"
        )
    if source.name.startswith(HUB):
        raise DataError(f"the task is '{source.name}', and files were given as well; name one source of data")
    tables = {"train": read_table(source.train), "validation": read_table(source.validation)}
    return tables if source.test is None else {**tables, "test": read_table(source.test)}


def _known(source: TaskSource) -> dict[str, pa.Table]:
    task = KNOWN[source.name]
    if not task.hub:
        return _embedded(task.name.rpartition("/")[2])
    folder = source.data or (Path(os.environ[GLUE_DIR]) if os.environ.get(GLUE_DIR) else None)
    return _from_folder(folder, task) if folder else _from_hub(task)


def _embedded(name: str) -> dict[str, pa.Table]:
    from evenkeel.tasks.grammar import rows

    return {part: pa.table(rows(name, part)) for part in ("train", "validation", "test")}


def _from_folder(folder: Path, task: Task) -> dict[str, pa.Table]:
    name = task.name
    if not folder.is_dir():
        raise DataError(f"there is no folder '{folder}' to read {name} from; give the folder of the files with --data")
    places = [folder / name]
    if folder.name == name or folder.name not in KNOWN:  # the folder of another task is no place to look
        places.append(folder)
    for place in places:
        train, validation = (
            find_part(place, "train"),
            find_part(place, "validation") or find_part(place, task.validation),
        )
        if train and validation:
            more = {part: path for part in task.more if (path := find_part(place, part))}
            paths = {"train": train, "validation": validation, **more}
            return {part: read_table(path) for part, path in paths.items()}
    raise DataError(
        f"'{folder}' holds no {name}: there should be '{folder / name}/train' and '.../{task.validation}', each ending "
        f"in one of {', '.join(SUFFIXES)}"
    )


def _from_hub(task: Task) -> dict[str, pa.Table]:
    try:
        loaded = _loaded(*task.hub)
    except _NotLoadedError as error:
        raise DataError(
            f"{task.name} could not be loaded from the hub ({error}); without a network, point to a folder that "
            f"holds {task.name}/train.tsv and {task.name}/{task.validation}.tsv, by --data or by the environment "
            f"variable {GLUE_DIR}"
        ) from error
    parts = {"train": "train", "validation": task.validation} | dict(zip(task.more, task.more, strict=True))
    return {part: loaded[name].data.table for part, name in parts.items()}


def _any_of_hub(source: TaskSource) -> Found:
    name, _, configuration = source.name.removeprefix(HUB).partition(":")
    if not name:
        raise DataError(f"'{source.name}' names no data set; write {HUB}NAME or {HUB}NAME:CONFIGURATION")
    if source.data is not None and not source.data.is_dir():
        raise DataError(f"there is no folder '{source.data}' to read {source.name} from; give a copy of the data set")
    try:
        loaded = _loaded(str(source.data or name), *([configuration] if configuration else []))
    except _NotLoadedError as error:
        raise DataError(
            f"{source.name} could not be loaded ({error}); check its name and configuration, and without a network "
            "give a folder that holds a copy of it with --data, or your own files with --train and --validation"
        ) from error
    label = source.label_column
    names = getattr(loaded[next(iter(loaded))].features.get(label), "names", None)
    return Found(tables=_parts(source.name, loaded, label), classes=tuple(names or ()))


def _parts(name: str, loaded: DatasetDict, label: str) -> dict[str, pa.Table]:
    """Choose the parts; where only one part beside train has labels, it is validated on."""
    tables = {part: data.data.table for part, data in loaded.items()}
    labelled = "test" in tables and _labelled(tables["test"], label)
    validation = next((part for part in _VALIDATIONS if part in tables), "test" if labelled else None)
    if "train" not in tables or validation is None:
        raise DataError(
            f"{name} has the parts {', '.join(tables)}; a part 'train' is needed, and one of {', '.join(_VALIDATIONS)} "
            "or a labelled 'test'; save the parts that you want as files, and give them with --train and --validation"
        )
    chosen = {"train": tables["train"], "validation": tables[validation]}
    return {**chosen, "test": tables["test"]} if labelled and validation != "test" else chosen


def _labelled(table: pa.Table, label: str) -> bool:
    """Tell whether labels are there: secret ones are left out, or all alike."""
    return label in table.column_names and len(pa.compute.unique(table[label])) > 1


class _NotLoadedError(Exception):
    """Why the hub's client gave nothing, in one line."""


def _loaded(*names: str) -> DatasetDict:
    """Load a data set; since version 4 the client runs no code that a data set brings."""
    import datasets

    try:
        return datasets.load_dataset(*names)
    except Exception as error:  # the client raises many kinds, and none of them says what to do
        raise _NotLoadedError(f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}") from error
