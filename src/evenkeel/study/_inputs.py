"""A task's data and tokens in files, which all processes of a machine map into memory instead of making them again."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from evenkeel.errors import EngineError
from evenkeel.tasks import Task, TaskData

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Inputs", "inputs_come_from", "inputs_folder", "read_inputs", "write_inputs"]

_MANIFEST = "inputs.json"
_TEXTS, _TOKENS = "texts", "tokens"
_OWN_PARTS = ("train", "validation", "test")

Files = Mapping[str, Any]  # what is in each file, as anything that has a buffer

_elsewhere: dict[Path, Callable[[], Files]] = {}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A task as a model reads it.

    Attributes:
        data: the task's data.
        max_length: the most tokens that an example has.
        parts: ``train``, ``validation``, and ``test`` and others where there are: token ids, ``label``, ``length``. A
            causal language model has ``labels`` in place of ``label``, one for each token.
    """

    data: TaskData
    max_length: int
    parts: Mapping[str, Dataset]


@contextmanager
def inputs_folder() -> Iterator[Path]:
    """Make a folder for the inputs of a study, on this machine's disk for temporary files, that goes in the end.

    Yields:
        The folder.
    """
    with tempfile.TemporaryDirectory(prefix="inputs-evenkeel-") as folder:
        yield Path(folder)


def write_inputs(inputs: Inputs, folder: Path) -> None:
    """Write inputs into a folder of their own.

    Args:
        inputs: the inputs.
        folder: the folder, which is made.

    Raises:
        EngineError: if there is no room for them.
    """
    texts = {"train": inputs.data.train, **inputs.data.scored}
    manifest = {
        "task": asdict(inputs.data.task),
        "classes": inputs.data.classes,
        "fingerprint": inputs.data.fingerprint,
        "max_length": inputs.max_length,
        "parts": list(texts),
    }
    try:
        folder.mkdir(parents=True)
        for kind, tables in ((_TEXTS, texts), (_TOKENS, inputs.parts)):
            for part, dataset in tables.items():
                table = dataset.with_format("arrow")[:]
                with (
                    pa.OSFile(str(folder / _file(kind, part)), "wb") as file,
                    pa.ipc.new_stream(file, table.schema) as to,
                ):
                    to.write_table(table)
        (folder / _MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    except OSError as error:
        raise EngineError(
            f"the tokenised data cannot be written into the folder for temporary files ({error.strerror or error}); "
            "make room there, or let the environment variable TMPDIR name another folder"
        ) from error


def inputs_come_from(folder: Path, fetch: Callable[[], Files]) -> None:
    """Let this process have inputs from somebody who can reach them: the folder may lie on another machine.

    Args:
        folder: the folder, as the driver names it.
        fetch: returns what is in its files; called when a run needs it.
    """
    _elsewhere[folder] = fetch


@lru_cache(maxsize=8)
def read_inputs(folder: Path) -> Inputs:
    """Read inputs, once in this process; texts and tokens stay where they are, and are only mapped.

    Args:
        folder: where :func:`write_inputs` wrote them.

    Returns:
        The inputs.
    """
    from datasets import Dataset
    from datasets.table import InMemoryTable

    fetch = _elsewhere.get(folder)
    files = fetch() if fetch else _mapped(folder)
    manifest = json.loads(bytes(files[_MANIFEST]))

    def tables(kind: str) -> dict[str, Dataset]:
        names = {part: _file(kind, part) for part in manifest["parts"]}
        return {
            part: Dataset(InMemoryTable(pa.ipc.open_stream(pa.py_buffer(files[name])).read_all()))
            for part, name in names.items()
        }

    texts, classes = tables(_TEXTS), manifest["classes"]
    said: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in manifest["task"].items()
    }
    data = TaskData(
        task=Task(**said),
        classes=None if classes is None else tuple(classes),
        train=texts["train"],
        validation=texts["validation"],
        test=texts.get("test"),
        fingerprint=manifest["fingerprint"],
        more={part: table for part, table in texts.items() if part not in _OWN_PARTS},
    )
    return Inputs(data=data, max_length=manifest["max_length"], parts=tables(_TOKENS))


def _mapped(folder: Path) -> Files:
    return {path.name: pa.memory_map(str(path)).read_buffer() for path in folder.iterdir()}


def _file(kind: str, part: str) -> str:
    return f"{kind}-{part}.arrow"
