from __future__ import annotations

import os
import platform
import re
import resource
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from evenkeel.errors import StoreError
from evenkeel.study import StudyFolder

TABLES = {
    "log": pa.table({"step": [1, 2], "loss": [0.5, 0.25]}),
    "replacement": pa.table({"k": [0], "part": ["validation"], "score": [0.5]}),
}


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    made = StudyFolder(tmp_path / "study")
    made.create()
    return made


def files(folder: StudyFolder) -> list[str]:
    return sorted(str(path.relative_to(folder.path)) for path in folder.path.rglob("*"))


def test_tables_come_back(folder: StudyFolder) -> None:
    folder.write_run("a", TABLES)
    assert files(folder) == ["runs", "runs/a", "runs/a/log.parquet", "runs/a/replacement.parquet"]
    table = folder.read_run("a", "log")
    assert table is not None
    assert table.equals(TABLES["log"])
    assert folder.read_run("a", "predictions") is None
    assert folder.read_run("b", "log") is None


def test_a_run_that_was_written_and_not_recorded_is_replaced(folder: StudyFolder) -> None:
    folder.write_run("a", TABLES)
    folder.write_run("a", {"log": pa.table({"step": [7], "loss": [0.5]})})
    table = folder.read_run("a", "log")
    assert table is not None
    assert table["step"].to_pylist() == [7]
    assert folder.read_run("a", "replacement") is None


def test_a_run_without_tables_leaves_nothing(folder: StudyFolder) -> None:
    folder.write_run("a", {})
    assert files(folder) == []
    folder.write_run("a", TABLES)
    folder.write_run("a", {})  # nor those of an attempt that was not recorded
    assert folder.read_run("a", "log") is None


@pytest.mark.parametrize("fails", ["os.replace", "pyarrow.parquet.write_table"])
def test_nothing_is_half_written(folder: StudyFolder, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(
        {"os.replace": os, "pyarrow.parquet.write_table": pa.parquet}[fails], fails.split(".")[-1], fail
    )
    with pytest.raises(StoreError, match=r"results of run a cannot be written .*No space left on device.*same command"):
        folder.write_run("a", TABLES)
    assert files(folder) == ["runs"]
    assert folder.read_run("a", "log") is None


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".hidden").touch()
    StudyFolder(tmp_path).create()  # hidden files are nobody's work
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(
        StoreError, match="holds something that is no study; choose a new or an empty folder with --out"
    ):
        StudyFolder(tmp_path).create()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/evenkeel")):
        with pytest.raises(StoreError, match=r"cannot be written \(.+\); choose another with --out"):
            StudyFolder(path).create()


def test_the_lock_keeps_a_second_driver_out(folder: StudyFolder) -> None:
    with (
        folder.lock(),
        pytest.raises(StoreError, match="another process is working on the study .*evenkeel status"),
        StudyFolder(folder.path).lock(),
    ):
        pass
    with folder.lock():  # free again
        pass


def test_what_a_killed_driver_left_half_written_goes(folder: StudyFolder) -> None:
    (folder.path / ".writing-x").mkdir()
    with folder.lock():
        assert not (folder.path / ".writing-x").exists()


def test_the_lock_tells_who_holds_it_and_since_when(folder: StudyFolder) -> None:
    held = rf"\(process {os.getpid()} on {re.escape(platform.node())}, since \d{{4}}-\d\d-\d\dT[\d:]+\+00:00\)"
    said = pytest.raises(StoreError, match=f"is working on the study in '.*' {held}; wait for it")
    with folder.lock(), said, StudyFolder(folder.path).lock():
        pass
    assert not (folder.path / ".driver.json").exists()


@pytest.mark.parametrize("error", [NotImplementedError("no flock here"), OSError(37, "No locks available")])
def test_a_file_system_without_locks_is_refused(
    folder: StudyFolder, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("evenkeel.study._folder.FileLock.acquire", fail)
    said = pytest.raises(StoreError, match=r"cannot be locked against a second driver .*another file system with --out")
    with said, folder.lock():
        pass


def test_a_disk_that_takes_names_and_no_bytes_is_full(folder: StudyFolder) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(StoreError, match=r"cannot be written \(File too large\); choose another with --out"):
            folder.create()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
