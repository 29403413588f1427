"""The record of a study: one SQLite file, written by the driver alone."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, final

from pydantic import ValidationError

from evenkeel.errors import StoreError
from evenkeel.study._migrations import SCHEMA_VERSION, create, migrate
from evenkeel.study._plan import Plan, RunSpec
from evenkeel.study._records import RunRecord, Status, plain_plan, read_record
from evenkeel.study._sqlite import Opened, close_writer, keep_journal, open_reader, open_writer

__all__ = ["RunRecord", "Status", "Store"]


@final
class Store:
    """Reads and writes the SQLite file; every change is one transaction.

    What is recorded of a run that ended is on the disk when ``finish`` returns, also if the power fails then.
    """

    def __init__(self, path: Path) -> None:
        """Open the file to read and write, make it if it is new, and bring it up to date if it is old.

        Args:
            path: the file.

        Raises:
            StoreError: if it is no store, one of a newer version, or cannot be written.
        """
        if path.is_symlink():
            raise StoreError(f"'{path}' is a link, and a study writes into no other folder; choose another with --out")
        self._open(path, writes=True)

    @classmethod
    def reading(cls, path: Path) -> Store:
        """Open a file that is there to read alone; nothing is written, and an older store is understood as well.

        Args:
            path: the file.

        Returns:
            The store.

        Raises:
            StoreError: if it is no store, or one of a newer version.
        """
        store = cls.__new__(cls)
        store._open(path, writes=False)
        return store

    def _open(self, path: Path, *, writes: bool) -> None:
        self._path, self._writes, self._wrote = path, writes, False
        with self._at_work():
            self._opened = open_writer(path) if writes else open_reader(path)
        try:
            with self._reading():
                self._check_version()
        except StoreError:
            self._opened.close()
            raise

    @property
    def _connection(self) -> sqlite3.Connection:
        return self._opened.connection

    def _check_version(self) -> None:
        """Make the tables of a new file, bring old ones up to date, and refuse what is none of ours."""
        version = int(self._connection.execute("PRAGMA user_version").fetchone()[0])
        empty = version == 0 and not self._connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        if empty:
            self._make_new()
        elif version <= 0:
            raise StoreError(f"'{self._path}' is a database of something else; choose another folder with --out")
        elif version > SCHEMA_VERSION:
            raise StoreError(
                f"'{self._path}' is of schema version {version}, and this evenkeel reads up to version "
                f"{SCHEMA_VERSION}; use the evenkeel that wrote it, or a newer one"
            )
        elif version < SCHEMA_VERSION:
            if not self._writes:
                self._leave_for_memory()
            migrate(self._connection, version)

    def _make_new(self) -> None:
        if not self._writes:
            self._leave_for_memory()
        create(self._connection)

    def _leave_for_memory(self) -> None:
        """Go on with a copy, which may be changed where the file may not."""
        copy = sqlite3.connect(":memory:")
        self._connection.backup(copy)
        self._opened.close()
        self._opened = Opened(copy)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Say in our words what SQLite cannot do: read a damaged file, write to a full disk."""
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(
                f"the study's store '{self._path}' cannot be used ({error}); if the disk is full or the folder "
                "cannot be written, mend that and start the same command again: what was finished is kept; if the "
                "file is damaged, put a copy of it back or choose another folder with --out"
            ) from error

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Say in our words that a value is none that evenkeel writes."""
        with self._at_work():
            try:
                yield
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise StoreError(
                    f"the study's store '{self._path}' holds what evenkeel did not write ({_in_short(error)}); get the "
                    "folder anew from whoever made it, or choose another with --out"
                ) from error

    @contextmanager
    def _writing(self, *, at_once: bool = False) -> Iterator[sqlite3.Connection]:
        """Make one transaction; ``at_once`` waits until it is on the disk."""
        with self._at_work():
            if not self._wrote:  # not before: a file that is refused stays as it is
                keep_journal(self._opened, self._path)
                self._wrote = True
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if at_once else 'NORMAL'}")
            with self._connection:
                yield self._connection

    def copy_to(self, path: Path) -> None:
        """Write the store as one file, without what is no longer used; runs in progress are left as they are.

        Args:
            path: the new file, which is not there yet.

        Raises:
            StoreError: if it cannot be written.
        """
        with self._at_work():
            self._connection.execute("VACUUM INTO ?", (str(path),))

    def close(self) -> None:
        """Close the file."""
        if self._wrote:
            close_writer(self._opened)
        else:
            self._opened.close()

    @property
    def plan(self) -> Plan | None:
        """The plan, without the places of its files; None in a new store."""
        with self._reading():
            row = self._connection.execute("SELECT plan FROM study").fetchone()
            return plain_plan(row[0]) if row else None

    def save_plan(self, plan: Plan, runs: Iterable[RunSpec]) -> None:
        """Write the plan and queue those of its runs that are not there yet, in one transaction.

        What took the place of a run that is now to be done itself stands for nothing any more.

        Args:
            plan: the plan, which replaces an earlier one.
            runs: all of its runs, in the order in which they are to be done.
        """
        now = _now()
        with self._writing(at_once=True) as connection:
            before = connection.execute("SELECT created FROM study").fetchone()
            connection.execute("DELETE FROM study")
            created = before[0] if before else now
            connection.execute("INSERT INTO study VALUES (?, ?)", (plan.model_dump_json(), created))
            connection.executemany(
                "INSERT INTO run (id, position, spec, status, changed) VALUES (?, ?, ?, 'queued', ?)"
                " ON CONFLICT (id) DO UPDATE SET position = excluded.position",
                [(spec.id, position, spec.model_dump_json(), now) for position, spec in enumerate(runs)],
            )
            connection.execute("UPDATE run SET stands_for = NULL WHERE stands_for IN (SELECT id FROM run)")

    def requeue(self, *statuses: Status) -> None:
        """Queue again every run that has one of ``statuses``."""
        with self._writing() as connection:
            connection.executemany(
                "UPDATE run SET status = 'queued', error = NULL, changed = ? WHERE status = ?",
                [(_now(), status) for status in statuses],
            )

    def start(self, run: str) -> None:
        """Mark a run as running, one attempt more."""
        with self._writing() as connection:
            connection.execute(
                "UPDATE run SET status = 'running', attempts = attempts + 1, changed = ? WHERE id = ?", (_now(), run)
            )

    def finish(
        self, run: str, status: Status, *, outcome: Mapping[str, Any] | None = None, error: str | None = None
    ) -> None:
        """Record how a run ended, or that it waits again.

        Args:
            run: its id.
            status: the new status.
            outcome: scores and the like, of a run with a result.
            error: the traceback, of a run that raised; how its process ended, of a run that was lost.
        """
        text = json.dumps(outcome, allow_nan=False) if outcome is not None else None
        with self._writing(at_once=outcome is not None) as connection:
            connection.execute(
                "UPDATE run SET status = ?, outcome = ?, error = ?, changed = ? WHERE id = ?",
                (status, text, error, _now(), run),
            )

    def substitute(self, run: str, spec: RunSpec) -> bool:
        """Let another run take the place of one, and wait, in one transaction; it stands for the planned one.

        Args:
            run: the id of the run that gives way.
            spec: the other run.

        Returns:
            Whether it did; nothing changes where the study has that other run already.
        """
        with self._writing(at_once=True) as connection:
            if connection.execute("SELECT 1 FROM run WHERE id = ?", (spec.id,)).fetchone():
                return False
            connection.execute(
                "UPDATE run SET id = ?, spec = ?, status = 'queued', outcome = NULL, error = NULL, changed = ?,"
                " stands_for = coalesce(stands_for, id) WHERE id = ?",
                (spec.id, spec.model_dump_json(), _now(), run),
            )
            return True

    def substitutes(self) -> dict[str, RunSpec]:
        """Return what took the place of planned runs, by their ids."""
        return {run.stands_for: run.spec for run in self._runs("WHERE stands_for IS NOT NULL") if run.stands_for}

    def runs(self) -> list[RunRecord]:
        """Return all runs, in the plan's order."""
        return self._runs()

    def _runs(self, which: Literal["", "WHERE stands_for IS NOT NULL"] = "") -> list[RunRecord]:
        with self._reading():
            rows = self._connection.execute(
                f"SELECT id, spec, status, attempts, outcome, error, stands_for FROM run {which} ORDER BY position, id"  # noqa: S608
            ).fetchall()
            return [read_record(*row) for row in rows]


def _in_short(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return (str(error).splitlines() or [type(error).__name__])[0]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
