"""The files of a study; this object alone knows their names."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
from filelock import FileLock, Timeout

from evenkeel.errors import StoreError

__all__ = ["StudyFolder"]

TABLES = ("log", "norms", "predictions", "replacement")


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

    def create(self) -> None:
        """Make the folder, and see that it can be written.

        Raises:
            StoreError: if it cannot, or if something else is in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise StoreError(
                f"the folder '{self.path}' cannot be written ({error.strerror}); choose another with --out"
            ) from error
        if not self.store.exists() and any(not entry.name.startswith(".") for entry in self.path.iterdir()):
            raise StoreError(
                f"the folder '{self.path}' holds something that is no study; choose a new or an empty folder with --out"
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the study against a second driver.

        Raises:
            StoreError: if another process works on it.
        """
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise StoreError(
                f"another process is working on the study in '{self.path}'; wait for it, or look at it with: evenkeel "
                f"status {self.path}"
            ) from error
        try:
            for left in self.path.glob(".writing-*"):  # by a driver that was killed while it wrote
                shutil.rmtree(left, ignore_errors=True)
            yield
        finally:
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
        home.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.path, prefix=".writing-") as scratch:
            made = Path(scratch) / home.name
            made.mkdir()
            for name, table in tables.items():
                pa.parquet.write_table(table, made / f"{name}.parquet", compression="zstd")
            if home.exists():  # a run that was lost after writing and before being recorded
                shutil.rmtree(home)
            os.replace(made, home)

    def read_run(self, run: str, table: str) -> pa.Table | None:
        """Read a table of a run.

        Args:
            run: the run's id.
            table: one of ``TABLES``.

        Returns:
            The table; None if the run left none.
        """
        path = self._run(run) / f"{table}.parquet"
        return pa.parquet.read_table(path) if path.is_file() else None

    def _run(self, run: str) -> Path:
        return self.path / "runs" / run
