from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.study.test_store import FIRST, PLAN, SPECS

from evenkeel.errors import StoreError
from evenkeel.study import Store, open_study
from evenkeel.study import _sqlite as sqlite


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study.sqlite"


def filled(path: Path) -> Store:
    store = Store(path)
    store.save_plan(PLAN, SPECS)
    return store


def mode(path: Path) -> str:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return str(connection.execute("PRAGMA journal_mode").fetchone()[0])


# --- the journal


def test_a_driver_writes_ahead_and_leaves_one_file(path: Path) -> None:
    store = filled(path)
    assert mode(path) == "wal"
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "study.sqlite",
        "study.sqlite-shm",
        "study.sqlite-wal",
    ]
    store.close()
    assert mode(path) == "delete"
    assert [file.name for file in path.parent.iterdir()] == ["study.sqlite"]


def test_readers_and_the_writer_do_not_wait_for_each_other(path: Path) -> None:
    with closing(filled(path)) as store, closing(Store.reading(path)) as reader:
        assert reader.runs()[0].status == "queued"
        store.start(FIRST)
        assert reader.runs()[0].status == "running"
        store.close()  # and a reader that is there does not keep it from closing
        assert reader.runs()[0].status == "running"


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "lustre", "9p"])
def test_between_machines_a_rollback_journal_is_kept(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    mounts = tmp_path / "mountinfo"
    here = str(tmp_path).replace(" ", r"\040")
    mounts.write_text(
        f"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 22 0:40 / {here} rw,relatime shared:3 - {kind} server:/x rw\n"
    )
    monkeypatch.setattr(sqlite, "_MOUNTS", mounts)
    assert sqlite.file_system(path) == kind
    with closing(filled(path)):
        assert mode(path) == "delete"
    assert sqlite.file_system(Path("/elsewhere")) == "ext4"
    monkeypatch.setattr(sqlite, "_MOUNTS", tmp_path / "none")
    assert sqlite.file_system(path) == ""


# --- what a reader may not change


def test_a_reader_writes_nothing(path: Path) -> None:
    filled(path).close()
    before = path.read_bytes()
    with closing(Store.reading(path)) as store:
        with pytest.raises(StoreError, match="cannot be used .*readonly"):
            store.start(FIRST)
        assert len(store.runs()) == 3
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["study.sqlite"]


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder in which this process may not write once it is closed: root may, and so becomes somebody else."""
    folder = Path(tempfile.mkdtemp(prefix="evenkeel-"))
    yield folder
    os.seteuid(os.getuid())
    folder.chmod(0o755)
    shutil.rmtree(folder)


def close(folder: Path) -> None:
    for file in folder.iterdir():
        file.chmod(0o444)
    folder.chmod(0o555)
    if os.geteuid() == 0:
        os.seteuid(65534)


def test_a_read_only_folder_can_be_read(nobody: Path) -> None:
    filled(nobody / "study.sqlite").close()
    close(nobody)
    assert len(open_study(nobody)[1]) == 3
    with pytest.raises(StoreError, match="cannot be used .*readonly.*mend that and start the same command again"):
        filled(nobody / "study.sqlite")


def test_a_read_only_folder_whose_driver_was_killed_can_be_read(nobody: Path, path: Path) -> None:
    with closing(filled(path)) as store:
        store.start(FIRST)
        for file in path.parent.iterdir():
            if not file.name.endswith("-shm"):  # copied elsewhere, as people do, without what belongs to the machine
                shutil.copy(file, nobody / file.name)
    close(nobody)
    assert open_study(nobody)[1][0].status == "running"  # which the write-ahead log alone knows


def test_what_a_rollback_journal_has_to_mend_is_not_read(nobody: Path, path: Path) -> None:
    filled(path).close()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA cache_size = 1")
    connection.execute("BEGIN IMMEDIATE")
    for number in range(200):  # more than fits into its memory: the file is written before the commit
        values = (str(number), "x" * 2000)
        connection.execute(
            "INSERT INTO run (id, position, spec, status, changed) VALUES (?, 0, ?, 'queued', '')", values
        )
    for file in path.parent.iterdir():
        shutil.copy(file, nobody / file.name)
    connection.close()
    close(nobody)
    with pytest.raises(StoreError, match="was being written when its driver was cut off; start the same command again"):
        open_study(nobody)


def test_a_link_is_not_written_through(path: Path, tmp_path: Path) -> None:
    filled(tmp_path / "other.sqlite").close()
    path.symlink_to(tmp_path / "other.sqlite")
    with pytest.raises(StoreError, match="is a link, and a study writes into no other folder"):
        Store(path)
