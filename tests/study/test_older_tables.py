"""Tables of older folders, and torn ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from evenkeel.errors import StoreError
from evenkeel.measure import TELEMETRY, Recorded
from evenkeel.study import StudyFolder

NORM: dict[str, Any] = {"component": "head.weight", "layer": None, "role": "head", "kind": "weight"}
ROWS = [{"step": step, **NORM, "norm": 0.5 + step} for step in (0, 10)]
WORDS = [(name, pa.string()) for name in ("component", "role", "kind")]
OLD = pa.schema(
    [("step", pa.int32()), WORDS[0], ("layer", pa.int32()), WORDS[1], WORDS[2], ("norm", pa.float32())]
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    made = StudyFolder(tmp_path / "study")
    made.create()
    return made


def home(folder: StudyFolder) -> Path:
    path = folder.path / "runs" / "a"
    path.mkdir(parents=True, exist_ok=True)
    return path


def write(folder: StudyFolder, name: str, table: pa.Table) -> Path:
    path = home(folder) / f"{name}.parquet"
    pa.parquet.write_table(table, path)
    return path


def test_norms_of_an_older_folder_are_telemetry(folder: StudyFolder) -> None:
    write(folder, "norms", pa.Table.from_pylist(ROWS, schema=OLD))
    table = folder.read_run("a", "telemetry")
    assert table is not None
    assert table.schema.names == TELEMETRY.names
    assert table.schema.types == TELEMETRY.types
    lacking = dict.fromkeys(name for name in TELEMETRY.names if name not in OLD.names)
    assert table.to_pylist() == [
        {**lacking, **row, "step": row["step"] + 1}
        for row in ROWS  # the first step is 1 by now
    ]
    assert Recorded.of(table).sizes.tolist() == [0]


def test_telemetry_goes_before_norms(folder: StudyFolder) -> None:
    write(folder, "norms", pa.Table.from_pylist(ROWS, schema=OLD))
    columns = {name: [value, value] for name, value in NORM.items()}
    new = pa.table({"step": [1, 11], **columns, "norm": [7.0, 8.0], "phase": [0, 1], "colour": ["red", "blue"]})
    write(folder, "telemetry", new)
    table = folder.read_run("a", "telemetry")
    assert table is not None
    assert table.schema.names == TELEMETRY.names  # what it does not know, it does not hand out
    assert table["step"].to_pylist() == [1, 11]
    assert table["phase"].to_pylist() == [0, 1]
    assert table["size"].to_pylist() == [None, None]


@pytest.mark.parametrize("name", ["telemetry", "norms"])
@pytest.mark.parametrize("length", [0, 3, 100, -1])
def test_a_torn_file_is_missing_telemetry(folder: StudyFolder, name: str, length: int) -> None:
    path = write(folder, name, pa.Table.from_pylist(ROWS, schema=OLD))
    path.write_bytes(path.read_bytes()[:length])
    assert folder.read_run("a", "telemetry") is None


@pytest.mark.parametrize("name", ["telemetry", "norms"])
def test_a_table_of_something_else_is_refused(folder: StudyFolder, name: str) -> None:
    write(folder, name, pa.table({"step": [1]}))
    with pytest.raises(StoreError, match="is no table that evenkeel wrote.*it has no column component"):
        folder.read_run("a", "telemetry")
    write(folder, name, pa.table({"step": ["<b>"], **{key: [value] for key, value in NORM.items()}, "norm": [0.5]}))
    with pytest.raises(StoreError, match="is no table that evenkeel wrote"):
        folder.read_run("a", "telemetry")


@pytest.mark.parametrize("name", ["telemetry", "norms"])
def test_a_link_is_refused(folder: StudyFolder, name: str, tmp_path: Path) -> None:
    path = write(folder, name, pa.Table.from_pylist(ROWS, schema=OLD))
    path.rename(tmp_path / "elsewhere.parquet")
    path.symlink_to(tmp_path / "elsewhere.parquet")
    with pytest.raises(StoreError, match="is a link"):
        folder.read_run("a", "telemetry")
