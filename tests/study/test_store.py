from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from evenkeel.errors import StoreError
from evenkeel.study import Plan, RunSpec, Store, Training, open_study

PLAN = Plan.checked({"tasks": ["rte"], "seeds": 3}, where="the test")
SPECS = [
    RunSpec(
        task="rte",
        metric="accuracy",
        data_fingerprint="d",
        model="tiny",
        model_fingerprint="m",
        method="full",
        seed=seed,
        training=Training(),
    )
    for seed in (1, 2, 3)
]
FIRST, SECOND, THIRD = (spec.id for spec in SPECS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with closing(Store(path)) as opened:
        opened.save_plan(PLAN, SPECS)
        yield opened


def states(store: Store) -> list[tuple[str, int]]:
    return [(run.status, run.attempts) for run in store.runs()]


def test_a_new_store_is_empty(path: Path) -> None:
    with closing(Store(path)) as store:
        assert store.plan is None
        assert store.runs() == []


def test_everything_comes_back(store: Store, path: Path) -> None:
    store.start(FIRST)
    store.finish(FIRST, "done", outcome={"scores": {"validation": 0.5}})
    store.start(SECOND)
    store.finish(SECOND, "error", error="Traceback")
    with closing(Store(path)) as again:
        assert again.plan == PLAN
        assert again.runs() == store.runs()
        done, error, queued = again.runs()
    assert done.spec == SPECS[0]
    assert (done.outcome, done.error, done.finished) == ({"scores": {"validation": 0.5}}, None, True)
    assert (error.outcome, error.error, error.finished) == ({}, "Traceback", False)
    assert (queued.status, queued.attempts, queued.finished) == ("queued", 0, False)


def test_only_what_is_named_is_queued_again(store: Store) -> None:
    for run, status in ((FIRST, "diverged"), (SECOND, "lost")):
        store.start(run)
        store.finish(run, status, outcome={} if status == "diverged" else None)  # type: ignore[arg-type]
    store.start(THIRD)
    store.requeue("running", "error")
    assert states(store) == [("diverged", 1), ("lost", 1), ("queued", 1)]
    store.requeue("lost")
    assert states(store) == [("diverged", 1), ("queued", 1), ("queued", 1)]


def test_a_larger_plan_keeps_what_there_is_and_orders_anew(store: Store) -> None:
    store.start(THIRD)
    store.finish(THIRD, "done", outcome={"x": 1})
    store.save_plan(PLAN, reversed(SPECS))
    assert [run.id for run in store.runs()] == [THIRD, SECOND, FIRST]
    assert store.runs()[0].outcome == {"x": 1}


def test_a_number_that_is_none_is_never_stored(store: Store) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.finish(FIRST, "done", outcome={"score": float("nan")})
    assert states(store)[0] == ("queued", 0)


def test_a_store_of_a_newer_evenkeel_is_refused(store: Store, path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 4")
    with pytest.raises(StoreError, match="schema version 4, and this evenkeel reads up to version 3; use the"):
        Store(path)


def test_a_database_of_something_else_is_refused(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE recipe (title TEXT)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="is a database of something else; choose another folder"):
        Store(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kept", [20, 100, 1000, 5000, 9000])
def test_a_truncated_file_is_refused(store: Store, path: Path, kept: int) -> None:
    store.close()
    whole = path.read_bytes()
    assert len(whole) > kept
    path.write_bytes(whole[:kept])
    with pytest.raises(StoreError, match=r"store '.*study.sqlite' cannot be used \(.*\); .*copy .*--out"):
        open_study(path.parent)


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.write_bytes(b"something else, and long enough to have a header " * 10)
    with pytest.raises(StoreError, match="cannot be used .*not a database"):
        Store(path)


def test_a_write_that_fails_is_said_clearly(store: Store, path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("DROP TABLE run")
    with pytest.raises(StoreError, match="cannot be used .*no such table"):
        store.start(FIRST)


def test_there_is_no_study_to_open(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no study; give the folder that was named by --out"):
        open_study(tmp_path)
    with closing(Store(tmp_path / "study.sqlite")), pytest.raises(StoreError, match="has no plan yet; start it again"):
        open_study(tmp_path)
