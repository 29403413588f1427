"""The record of a study: one SQLite file, written by the driver alone."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from evenkeel.errors import StoreError
from evenkeel.study._plan import Plan, RunSpec

__all__ = ["RunRecord", "Status", "Store"]

Status = Literal["queued", "running", "done", "diverged", "error", "lost"]

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE study (plan TEXT NOT NULL, created TEXT NOT NULL);
CREATE TABLE run (
    id TEXT PRIMARY KEY,
    position INTEGER NOT NULL,
    spec TEXT NOT NULL,
    status TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    outcome TEXT,
    error TEXT,
    changed TEXT NOT NULL
);
"""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What the store knows of a run.

    Attributes:
        id: hash of the specification.
        spec: the specification.
        status: ``done`` and ``diverged`` are results; ``error`` (it raised) and ``lost`` (its process died, again and
            again) are tried again by the next start.
        attempts: how often it was started.
        outcome: scores, failure by both lines, times, provenance; empty before the run ended.
        error: the traceback, where it raised.
    """

    id: str
    spec: RunSpec
    status: Status
    attempts: int
    outcome: Mapping[str, Any]
    error: str | None

    @property
    def finished(self) -> bool:
        """Whether the run has a result and is not to be run again."""
        return self.status in ("done", "diverged")


class Store:
    """Reads and writes the SQLite file; every change is one transaction."""

    def __init__(self, path: Path) -> None:
        """Open the file, and make it if it is new.

        Args:
            path: the file.

        Raises:
            StoreError: if it is no store, or one of another version.
        """
        self._path = path
        with self._at_work():
            self._connection = sqlite3.connect(path)
        try:
            version = self._prepare()
        except StoreError:
            self.close()
            raise
        if version == 0:
            self.close()
            raise StoreError(f"'{path}' is a database of something else; choose another folder with --out")
        if version != SCHEMA_VERSION:
            self.close()
            raise StoreError(
                f"'{path}' is of schema version {version}, and this evenkeel reads version {SCHEMA_VERSION}; use the "
                "evenkeel that wrote it"
            )

    def _prepare(self) -> int:
        """Make the tables in a new file, and return the version of their schema; 0 where they are not ours."""
        with self._at_work():
            version = int(self._connection.execute("PRAGMA user_version").fetchone()[0])
            if version == 0 and not self._connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                self._connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
                return SCHEMA_VERSION
            return version

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Say in our words what SQLite cannot do: read a damaged file, write to a full disk."""
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(
                f"the study's store '{self._path}' cannot be used ({error}); if the file is damaged, put a copy "
                "of it back or choose another folder with --out"
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @property
    def plan(self) -> Plan | None:
        """The plan; None in a new store."""
        with self._at_work():
            row = self._connection.execute("SELECT plan FROM study").fetchone()
        return Plan.model_validate_json(row[0]) if row else None

    def save_plan(self, plan: Plan, runs: Iterable[RunSpec]) -> None:
        """Write the plan and queue those of its runs that are not there yet, in one transaction.

        Args:
            plan: the plan, which replaces an earlier one.
            runs: all of its runs, in the order in which they are to be done.
        """
        with self._at_work(), self._connection:
            self._connection.execute("DELETE FROM study")
            self._connection.execute("INSERT INTO study VALUES (?, ?)", (plan.model_dump_json(), _now()))
            self._connection.executemany(
                "INSERT INTO run (id, position, spec, status, changed) VALUES (?, ?, ?, 'queued', ?)"
                " ON CONFLICT (id) DO UPDATE SET position = excluded.position",
                [(spec.id, position, spec.model_dump_json(), _now()) for position, spec in enumerate(runs)],
            )

    def requeue(self, *statuses: Status) -> None:
        """Queue again every run that has one of ``statuses``."""
        with self._at_work(), self._connection:
            self._connection.executemany(
                "UPDATE run SET status = 'queued', error = NULL, changed = ? WHERE status = ?",
                [(_now(), status) for status in statuses],
            )

    def start(self, run: str) -> None:
        """Mark a run as running, one attempt more."""
        with self._at_work(), self._connection:
            self._connection.execute(
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
            error: the traceback, of a run that raised.
        """
        text = json.dumps(outcome, allow_nan=False) if outcome is not None else None
        with self._at_work(), self._connection:
            self._connection.execute(
                "UPDATE run SET status = ?, outcome = ?, error = ?, changed = ? WHERE id = ?",
                (status, text, error, _now(), run),
            )

    def runs(self) -> list[RunRecord]:
        """Return all runs, in the plan's order."""
        with self._at_work():
            rows = self._connection.execute(
                "SELECT id, spec, status, attempts, outcome, error FROM run ORDER BY position, id"
            ).fetchall()
        return [
            RunRecord(
                id=run,
                spec=RunSpec.model_validate_json(spec),
                status=status,
                attempts=attempts,
                outcome=json.loads(outcome) if outcome else {},
                error=error,
            )
            for run, spec, status, attempts, outcome, error in rows
        ]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
