"""The files of a study; this object alone knows their names."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
from filelock import FileLock, Timeout

from evenkeel.errors import StoreError
from evenkeel.study._manifest import sync, sync_folder
from evenkeel.study._older_tables import OLDER_TELEMETRY, as_telemetry
from evenkeel.study._owner import read_owner, write_owner

__all__ = ["StudyFolder"]

_RUNS, _CHECKPOINTS = "runs", "checkpoints"
_ID = re.compile(r"[0-9a-z]{1,64}")
_THREADS = ThreadPoolExecutor(6, thread_name_prefix="evenkeel-disk")  # they start when they are needed
_PROBE = 4096  # bytes; a full disk takes an empty file
_ANEW = "get the folder anew from whoever made it, or choose another with --out"
_COLUMNS: dict[str, dict[str, Callable[[pa.DataType], bool]]] = {  # what reports read of each table
    "log": {"step": pa.types.is_integer, "loss": pa.types.is_floating},
    "telemetry": {},  # see as_telemetry
    "course": {"step": pa.types.is_integer, "phase": pa.types.is_integer, "score": pa.types.is_floating},
    "predictions": {"part": pa.types.is_string, "example": pa.types.is_integer},
    "replacement": {"k": pa.types.is_integer, "part": pa.types.is_string, "score": pa.types.is_floating},
}
TABLES = tuple(_COLUMNS)
_TELEMETRY = "telemetry"


class StudyFolder:
    """A folder with the store, a folder of tables for each run, and the report.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        """Name the files under ``path``; nothing is made yet."""
        self.path = path

    @property
    def store(self) -> Path:
        """The SQLite file."""
        return self.path / "study.sqlite"

    @property
    def report(self) -> Path:
        """The report page."""
        return self.path / "report.html"

    @property
    def table(self) -> Path:
        """The results table, as Markdown."""
        return self.path / "results.md"

    @property
    def claims(self) -> Path:
        """The paper's claims as the study has them, as Markdown."""
        return self.path / "claims.md"

    @property
    def movements(self) -> Path:
        """How the weights of runs moved, as far as claims are judged by it: what a packed study keeps of telemetry."""
        return self.path / "movements.parquet"

    @property
    def written(self) -> list[Path]:
        """All files of a report, whether they are there or not."""
        tables = [self.table.with_suffix(suffix) for suffix in (".md", ".csv", ".tex")]
        return [self.report, *tables, self.claims, self.claims.with_suffix(".csv"), self.movements]

    def create(self) -> None:
        """Make the folder, and see that it can be written.

        Raises:
            StoreError: if it cannot, or if something else is in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path) as file:
                file.write(b"x" * _PROBE)
        except OSError as error:
            raise StoreError(
                f"the folder '{self.path}' cannot be written ({error.strerror}); choose another with --out"
            ) from error
        if not self.store.exists() and any(not entry.name.startswith(".") for entry in self.path.iterdir()):
            raise StoreError(
                f"the folder '{self.path}' holds something that is no study; choose a new or an empty folder with --out"
            )
        for own in (self.store, self.path / _RUNS, self.path / _CHECKPOINTS):
            self._refuse_link(own)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the study against a second driver.

        Raises:
            StoreError: if another process works on it; with the machine, the process and since when.
        """
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise StoreError(
                f"another process is working on the study in '{self.path}'{read_owner(self._owner)}; wait for it, or "
                f"look at it with: evenkeel status {self.path}"
            ) from error
        except (NotImplementedError, OSError) as error:
            raise StoreError(
                f"the folder '{self.path}' cannot be locked against a second driver ({error}); choose a folder on "
                "another file system with --out"
            ) from error
        try:
            write_owner(self._owner)
            for left in self.path.glob(".writing-*"):  # by a driver that was killed while it wrote
                shutil.rmtree(left, ignore_errors=True)
            yield
        finally:
            self._owner.unlink(missing_ok=True)
            lock.release()

    def write_run(self, run: str, tables: Mapping[str, pa.Table]) -> None:
        """Write the tables of a run, all or none: beside first, then renamed.

        Args:
            run: the run's id.
            tables: tables by name, each one of ``TABLES``.

        Raises:
            StoreError: if they cannot be written: no permission, no space.
        """
        try:
            self._write(self._run(run), tables)
        except OSError as error:
            raise StoreError(
                f"the results of run {run} cannot be written in '{self.path}' ({error.strerror or error}); mend "
                "that and start the same command again: what was finished is kept"
            ) from error

    def _write(self, home: Path, tables: Mapping[str, pa.Table]) -> None:
        self._refuse_link(home.parent)
        if not tables:
            shutil.rmtree(home, ignore_errors=True)
            return
        home.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.path, prefix=".writing-") as scratch:
            made = Path(scratch) / home.name
            made.mkdir()
            for name, table in tables.items():
                pa.parquet.write_table(table, made / f"{name}.parquet", compression="zstd")
            if home.exists():  # a run that was lost after writing and before being recorded
                shutil.rmtree(home)
            os.replace(made, home)
        # What the store says to be done is there, also if the power fails then. Asked for at once, the disk does it in
        # about one go; in which order does not matter, since nobody reads what is not recorded.
        files = [home / f"{name}.parquet" for name in tables]
        waits = _THREADS.map(sync, files), _THREADS.map(sync_folder, [home, home.parent])
        for wait in waits:
            list(wait)  # raises what a thread raised

    def read_run(self, run: str, table: str) -> pa.Table | None:
        """Read a table of a run.

        Args:
            run: the run's id.
            table: one of ``TABLES``.

        Returns:
            The table; None if the run left none, and if its telemetry is torn. Telemetry has all columns of
            ``TELEMETRY``: those that an older folder lacks, where it was a table of norms, are null.

        Raises:
            StoreError: if the file is a link, or no table that evenkeel writes.
        """
        path = self._run(run) / f"{table}.parquet"
        older = path.with_name(OLDER_TELEMETRY)
        for own in (path.parent.parent, path.parent, path, older):
            self._refuse_link(own)
        first = 0 if table == _TELEMETRY and not path.is_file() else 1
        path = path if first else older
        if not path.is_file():
            return None
        try:
            found = pa.parquet.read_table(path, partitioning=None)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if table == _TELEMETRY:  # no number of a run depends on it
                return None
            raise StoreError(f"{_damaged(path)} ({_reason(error)}); {_ANEW}") from error
        try:
            found = as_telemetry(found, first=first) if table == _TELEMETRY else found
            kinds = {name: found.schema.field(name).type for name in _COLUMNS[table]}
        except (pa.ArrowException, KeyError) as error:
            raise StoreError(f"{_damaged(path)} ({_reason(error)}); {_ANEW}") from error
        wrong = next((name for name, fits in _COLUMNS[table].items() if not fits(kinds[name])), None)
        if wrong is not None:
            raise StoreError(f"{_damaged(path)} (its column {wrong} is of another kind); {_ANEW}")
        return found

    def checkpoints(self, run: str) -> Path:
        """Name the folder for the checkpoints of a run.

        Args:
            run: the run's id.

        Returns:
            The folder; it need not be there.

        Raises:
            StoreError: if somebody put a link in its place.
        """
        path = self.path / _CHECKPOINTS / _plain(run)
        self._refuse_link(path)
        return path

    def drop_checkpoints(self, run: str) -> None:
        """Remove the checkpoints of a run that needs them no more."""
        shutil.rmtree(self.checkpoints(run), ignore_errors=True)
        with suppress(OSError):  # others are there still, or none ever were
            (self.path / _CHECKPOINTS).rmdir()

    @property
    def _owner(self) -> Path:
        return self.path / ".driver.json"

    def _run(self, run: str) -> Path:
        return self.path / _RUNS / _plain(run)

    def _refuse_link(self, path: Path) -> None:
        if path.is_symlink():
            raise StoreError(f"'{path}' is a link, and a study lies in one folder; {_ANEW}")


def _plain(run: str) -> str:
    """See that the id of a run names a folder here and nowhere else."""
    if not _ID.fullmatch(run):
        raise StoreError(f"{run!r} is no id of a run; {_ANEW}")
    return run


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _damaged(path: Path) -> str:
    return f"'{path}' is no table that evenkeel wrote"
