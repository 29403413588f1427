"""The store's tables, and how those of earlier versions become today's."""

from __future__ import annotations

import json
import sqlite3

from evenkeel.study._places import without_places
from evenkeel.study._plan import Plan

__all__ = ["SCHEMA_VERSION", "create", "migrate"]

SCHEMA_VERSION = 3
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
    changed TEXT NOT NULL,
    stands_for TEXT
);
"""


def create(connection: sqlite3.Connection) -> None:
    """Make the tables of a new store, all or none.

    Args:
        connection: a connection to an empty file.
    """
    connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Bring the tables of an earlier version to today's, all or none.

    Args:
        connection: a connection that may write.
        version: the version that is there.
    """
    connection.execute("PRAGMA secure_delete = ON")  # what is taken out is not to be found in the file
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        for step in range(version, SCHEMA_VERSION):
            _STEPS[step](connection)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _from_first(connection: sqlite3.Connection) -> None:
    """Paths leave the plan; a run that is no better than chance has a status of its own."""
    for row, plan in connection.execute("SELECT rowid, plan FROM study").fetchall():
        text = without_places(Plan.stored(plan)).model_dump_json()
        connection.execute("UPDATE study SET plan = ? WHERE rowid = ?", (text, row))
    done = connection.execute("SELECT id, outcome FROM run WHERE status = 'done'").fetchall()
    failed = [(run,) for run, outcome in done if json.loads(outcome or "{}").get("failed")]
    connection.executemany("UPDATE run SET status = 'failed' WHERE id = ?", failed)


def _from_second(connection: sqlite3.Connection) -> None:
    """A run may stand for the planned one that ran out of memory."""
    connection.execute("ALTER TABLE run ADD COLUMN stands_for TEXT")


_STEPS = {1: _from_first, 2: _from_second}  # by the version that they start from
