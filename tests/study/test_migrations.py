from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from tests.study.test_store import SPECS

from evenkeel.errors import StoreError
from evenkeel.study import Plan, Store
from evenkeel.study._places import without_places
from evenkeel.study._smaller import smaller

FIRST_SCHEMA = """
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
PRAGMA user_version = 1;
"""
PLAN = Plan.checked(
    {"tasks": [{"name": "rte", "train": "/home/zelda/train.csv"}], "models": ["/home/zelda/m"], "seeds": 3},
    where="the test",
)
OUTCOMES = [("done", {"failed": False}), ("done", {"failed": True}), ("error", None)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store as the first version wrote it."""
    path = tmp_path / "study.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(FIRST_SCHEMA)
        old = json.loads(PLAN.model_dump_json())
        plan = {key: old[key] for key in ("tasks", "models", "methods", "seeds", "training")}
        plan["tasks"] = [
            {"name": "rte", "data": None, "train": "/home/zelda/train.csv", "validation": None, "text": None,
             "label": None, "metric": None, "max_train_samples": None}
        ]  # fmt: skip
        connection.execute("INSERT INTO study VALUES (?, '2026-01-01')", (json.dumps(plan),))
        for place, (spec, (status, outcome)) in enumerate(zip(SPECS, OUTCOMES, strict=True)):
            kept = {
                key: value
                for key, value in spec.model_dump(mode="json").items()
                if key not in ("init_seed", "order_seed", "split_seed", "overrides")
            }
            row = (spec.id, place, json.dumps(kept), status, 1, json.dumps(outcome) if outcome else None, None, "")
            connection.execute("INSERT INTO run VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
    return path


def seen(store: Store) -> list[tuple[str, str, int]]:
    return [(run.id, run.status, run.attempts) for run in store.runs()]


EXPECTED = [(spec.id, status, 1) for spec, status in zip(SPECS, ("done", "failed", "error"), strict=True)]


def test_an_old_store_is_brought_up_to_date(path: Path) -> None:
    with closing(Store(path)) as store:
        assert seen(store) == EXPECTED
        plan = store.plan
    assert plan is not None
    assert (plan.tasks[0].train, plan.models, plan.seeds) == (Path("train.csv"), ("m",), (1, 2, 3))
    with closing(Store(path)) as store:  # and stays so
        assert seen(store) == EXPECTED
        assert store.plan == plan
    assert b"zelda" not in path.read_bytes()  # also where nothing points any more


def test_an_old_store_that_is_only_read_stays_old(path: Path) -> None:
    before = path.read_bytes()
    with closing(Store.reading(path)) as store:
        assert seen(store) == EXPECTED
        assert store.plan is not None
        assert store.plan.models == ("m",)
    assert path.read_bytes() == before


def test_a_migration_that_fails_leaves_the_old_store(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE run SET outcome = '{' WHERE status = 'done'")
    with pytest.raises(StoreError, match="holds what evenkeel did not write"):
        Store(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        assert "zelda" in connection.execute("SELECT plan FROM study").fetchone()[0]


def test_a_store_of_version_2_learns_what_runs_stand_for(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE run SET status = 'failed' WHERE position = 1")
        connection.execute("UPDATE study SET plan = ?", (without_places(PLAN).model_dump_json(),))
        connection.execute("PRAGMA user_version = 2")
    with closing(Store.reading(path)) as store:
        assert seen(store) == EXPECTED
    with closing(Store(path)) as store:
        assert seen(store) == EXPECTED
        assert {run.stands_for for run in store.runs()} == {None}
        assert store.substitute(SPECS[2].id, smaller(SPECS[2]) or SPECS[2])
    with closing(Store(path)) as store:
        assert list(store.substitutes()) == [SPECS[2].id]
