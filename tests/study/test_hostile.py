"""A study folder from a stranger can be opened and reported on: it runs nothing, reads nothing else, writes nowhere."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from evenkeel.cli import main
from evenkeel.errors import StoreError
from evenkeel.report import write_report
from evenkeel.study import Plan, RunSpec, Store, StudyFolder, open_study

OUTCOME: dict[str, Any] = {
    "metric": "accuracy",
    "scores": {"validation": 0.7},
    "majority": {"validation": 0.5},
    "constant": False,
    "failed": False,
    "failed_by_majority": False,
    "wall_seconds": 1.5,
    "provenance": {"versions": {"evenkeel": "0.1.0"}, "python": "3.11", "device": "cpu (x)", "threads": 1},
}
LOG = pa.table({"step": [1, 2], "loss": [0.7, 0.6]})
NORM = {"step": 1, "component": "head.weight", "layer": None, "role": "head", "kind": "weight", "norm": 0.5}
NORMS = pa.Table.from_pylist([NORM]).cast(
    pa.schema(
        [("step", pa.int32()), ("component", pa.string()), ("layer", pa.int32()), ("role", pa.string()),
         ("kind", pa.string()), ("norm", pa.float32())]
    )
)  # fmt: skip


def made(path: Path, *, task: str = "rte", model: str = "tiny", method: str = "full", seeds: int = 2) -> StudyFolder:
    """Make a study by hand."""
    folder = StudyFolder(path)
    folder.create()
    plan = Plan.model_construct(**{**dict(Plan(tasks=[{"name": "rte"}], seeds=seeds)), "methods": (method,)})
    plan = plan.model_copy(update={"tasks": (plan.tasks[0].model_copy(update={"name": task}),), "models": (model,)})
    specs = [
        RunSpec(
            task=task, metric="accuracy", data_fingerprint="d", model=model, model_fingerprint="m", method=method,
            seed=seed, training=plan.training,
        )
        for seed in plan.seeds
    ]  # fmt: skip
    with closing(Store(folder.store)) as store:
        store.save_plan(plan, specs)
        for spec in specs:
            folder.write_run(spec.id, {"log": LOG, "norms": NORMS})
            store.finish(spec.id, "done", outcome=OUTCOME)
    return folder


class Tags(HTMLParser):
    """Lists the tags of a page with the names of their attributes, without what is inside of scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(sorted(name for name, _ in attrs))))


def tags(page: Path) -> list[tuple[str, tuple[str, ...]]]:
    parser = Tags()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser.found


# --- names


ATTACKS = [
    "</script><script>alert(1)</script>",
    pytest.param('"><img src=x onerror=alert(1)>', marks=pytest.mark.slow),
    pytest.param("<!--", marks=pytest.mark.slow),
    "{{ 7 * 7 }}{% raw %}",
    "[bold red]x[/bold red][/nothing]",
    pytest.param("[link=https://example.org]x[/link]", marks=pytest.mark.slow),
    "| x | y |",
    "../../../etc/passwd",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_names_of_a_study_that_is_judged_stay_names(tmp_path: Path, attack: str) -> None:
    hostile, tame = made(tmp_path / "hostile", task=attack, model=attack), made(tmp_path / "tame")
    assert tags(write_report(hostile.path)) == tags(write_report(tame.path))
    assert "49" not in hostile.claims.read_text(encoding="utf-8")


@pytest.mark.parametrize("attack", ATTACKS)
def test_names_stay_names(
    tmp_path: Path, attack: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = made(tmp_path / "hostile", task=attack, model=attack, method=attack)
    tame = made(tmp_path / "tame", method="plain")  # no more than the other a method that the paper says anything of
    assert tags(write_report(hostile.path)) == tags(write_report(tame.path))
    assert "49" not in hostile.table.read_text(encoding="utf-8")
    for command in ("status", "report"):
        monkeypatch.setattr(sys, "argv", ["evenkeel", command, str(hostile.path)])
        monkeypatch.setenv("COLUMNS", "300")
        with pytest.raises(SystemExit, match="0"):
            main()
        assert attack in capsys.readouterr().out


@pytest.mark.parametrize("place", ["task", "model", "method"])
@pytest.mark.parametrize("character", ["\x1b[2J", "\x07", "\r", "\n", "\u202e", "\x9b31m"])
def test_names_that_move_the_cursor_are_refused(tmp_path: Path, place: str, character: str) -> None:
    folder = made(tmp_path, **{place: f"a{character}b"})  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="holds what evenkeel did not write .*control characters.*get the folder anew"):
        open_study(folder.path)


def test_errors_cannot_move_the_cursor(tmp_path: Path) -> None:
    folder = made(tmp_path)
    change(folder, "UPDATE run SET status = 'error', error = ?", "Traceback\n\tb\x1b]0;owned\x07\n\x9b2J")
    assert open_study(folder.path)[1][0].error == "Traceback\n\tb?]0;owned?\n?2J"


# --- values


def change(folder: StudyFolder, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(folder.store)) as connection, connection:
        connection.execute(statement, values)


def outcome(**changes: Any) -> str:
    return json.dumps({**OUTCOME, **changes})


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("id", "../../../tmp/evil"),
        ("status", "owned"),
        ("status", 7),
        ("attempts", -1),
        ("attempts", "many"),
        ("attempts", 1.5),
        ("spec", "{}"),
        ("spec", "["),
        ("spec", '{"task": 1}'),
        ("spec", None),
        ("outcome", "{"),
        ("outcome", "[]"),
        ("outcome", "[" * 100_000),
        ("outcome", "9" * 10_000),
        ("outcome", b"\xff\xfe"),
        ("outcome", '{"a": 1}'),
        ("outcome", outcome(scores={"validation": float("inf")})),
        ("outcome", outcome(scores={"validation": float("nan")})),
        ("outcome", outcome(scores={"validation": None})),
        ("outcome", outcome(scores={})),
        ("outcome", outcome(majority={"validation": [1]})),
        ("outcome", outcome(metric="a\x1b[2J")),
        ("outcome", outcome(failed="yes, no")),
        ("outcome", outcome(wall_seconds=-1e400)),
        ("outcome", outcome(provenance={"versions": {"a": {"b": 1}}})),
        ("outcome", outcome(provenance=None)),
        ("outcome", outcome(health="ill")),
        ("outcome", outcome(health={"vanishing": "<b>"})),
        ("outcome", outcome(racing={"half_time_spread": float("nan")})),
        ("outcome", outcome(convergence={"loss\x1b[2J": 1.0})),
    ],
    ids=str,
)
def test_absurd_values_are_refused_in_plain_words(tmp_path: Path, column: str, value: object) -> None:
    folder = made(tmp_path, seeds=1)
    with closing(sqlite3.connect(folder.store)) as connection, connection:
        if column == "spec" and value is None:
            connection.execute("DROP TABLE run")
            connection.execute(
                "CREATE TABLE run (id, position, spec, status, attempts, outcome, error, changed, stands_for)"
            )
            connection.execute("INSERT INTO run VALUES ('a', 0, NULL, 'queued', 0, NULL, NULL, '', NULL)")
        else:
            connection.execute(f"UPDATE run SET {column} = ?", (value,))  # noqa: S608  our own words
    with pytest.raises(StoreError, match="get the folder anew from whoever made it"):
        open_study(folder.path)


@pytest.mark.parametrize("plan", ["", "{", "[]", '{"tasks": []}', '{"tasks": [{"name": "a"}], "seeds": 1e999}', "7"])
def test_a_plan_that_is_none_is_refused(tmp_path: Path, plan: str) -> None:
    folder = made(tmp_path)
    change(folder, "UPDATE study SET plan = ?", plan)
    with pytest.raises(StoreError, match="holds what evenkeel did not write"):
        open_study(folder.path)


def test_a_schema_that_computes_is_not_trusted(tmp_path: Path) -> None:
    folder = made(tmp_path)
    with closing(sqlite3.connect(folder.store)) as connection, connection:
        connection.execute("ALTER TABLE run RENAME TO kept")
        connection.execute(
            "CREATE VIEW run AS SELECT id, position, spec, status, attempts, outcome, changed,"
            " load_extension('/tmp/evil.so') AS error FROM kept"
        )
    with pytest.raises(StoreError, match="cannot be used .*unsafe use of load_extension|not authorized"):
        open_study(folder.path)


# --- files


def first_run(folder: StudyFolder) -> Path:
    return next(iter(sorted((folder.path / "runs").iterdir())))


def link_table(folder: StudyFolder, outside: Path) -> None:
    pa.parquet.write_table(LOG, outside / "log.parquet")
    (first_run(folder) / "log.parquet").unlink()
    (first_run(folder) / "log.parquet").symlink_to(outside / "log.parquet")


def link_run(folder: StudyFolder, outside: Path) -> None:
    first_run(folder).rename(outside / "run")
    place = folder.path / "runs" / open_study(folder.path)[1][0].id
    if place.exists():
        place = folder.path / "runs" / open_study(folder.path)[1][1].id
    place.symlink_to(outside / "run")


def link_runs(folder: StudyFolder, outside: Path) -> None:
    (folder.path / "runs").rename(outside / "runs")
    (folder.path / "runs").symlink_to(outside / "runs")


def garbage(folder: StudyFolder, _: Path) -> None:
    (first_run(folder) / "log.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")


def empty(folder: StudyFolder, _: Path) -> None:
    (first_run(folder) / "log.parquet").write_bytes(b"")


def other_columns(folder: StudyFolder, _: Path) -> None:
    pa.parquet.write_table(pa.table({"step": [1]}), first_run(folder) / "log.parquet")


def twice_a_column(folder: StudyFolder, _: Path) -> None:
    table = pa.table([[1], [2], [0.5]], names=["step", "step", "loss"])
    pa.parquet.write_table(table, first_run(folder) / "log.parquet")


def other_types(folder: StudyFolder, _: Path) -> None:
    pa.parquet.write_table(pa.table({"step": ["<b>"], "loss": [0.5]}), first_run(folder) / "log.parquet")


@pytest.mark.parametrize(
    "spoil", [link_table, link_run, link_runs, garbage, empty, other_columns, twice_a_column, other_types],
    ids=lambda spoil: spoil.__name__,
)  # fmt: skip
def test_tables_that_are_none_are_refused(tmp_path: Path, spoil: Callable[[StudyFolder, Path], None]) -> None:
    folder, outside = made(tmp_path / "study"), tmp_path / "outside"
    outside.mkdir()
    spoil(folder, outside)
    with pytest.raises(StoreError, match="is a link, and a study lies in one folder|is no table that evenkeel wrote"):
        write_report(folder.path)


@pytest.mark.parametrize("run", ["..", ".", "../x", "a/b", "/etc", "", "a" * 100, "A\x00"])
def test_no_id_leads_out_of_the_folder(tmp_path: Path, run: str) -> None:
    folder = StudyFolder(tmp_path)
    for use in (
        lambda: folder.read_run(run, "log"),
        lambda: folder.write_run(run, {}),
        lambda: folder.checkpoints(run),
    ):
        with pytest.raises(StoreError, match="is no id of a run"):
            use()


@pytest.mark.parametrize("name", ["runs", "checkpoints", "study.sqlite"])
def test_a_driver_writes_through_no_link(tmp_path: Path, name: str) -> None:
    folder, outside = StudyFolder(tmp_path / "study"), tmp_path / "outside"
    folder.create()
    Store(folder.store).close()
    if name == "study.sqlite":
        folder.store.rename(outside)
    else:
        outside.mkdir()
    (folder.path / name).symlink_to(outside)
    with pytest.raises(StoreError, match=f"{name}' is a link, and a study lies in one folder"):
        folder.create()


def test_a_report_is_written_over_a_link_and_not_through_it(tmp_path: Path) -> None:
    folder, outside = made(tmp_path / "study"), tmp_path / "mine.txt"
    outside.write_text("mine", encoding="utf-8")
    for name in ("report.html", "results.md", f".report.html.{os.getpid()}", f".results.md.{os.getpid()}"):
        (folder.path / name).symlink_to(outside)
    write_report(folder.path)
    assert outside.read_text(encoding="utf-8") == "mine"
    assert folder.report.is_file()
    assert not folder.report.is_symlink()


@pytest.mark.parametrize(
    "owner",
    ["", "[" * 10_000, "{}", '{"host": "a\\u001b[2J", "pid": 1, "since": ""}', '{"host": "a", "pid": "x", "since": ""}',
     '{"host": "' + "a" * 5000 + '", "pid": 1, "since": ""}'],
)  # fmt: skip
def test_an_owner_that_is_none_is_not_told(tmp_path: Path, owner: str) -> None:
    folder = StudyFolder(tmp_path / "study")
    folder.create()
    with folder.lock():
        (folder.path / ".driver.json").write_text(owner, encoding="utf-8")
        with pytest.raises(StoreError, match=r"is working on the study in '[^']*'; wait for it"), folder.lock():
            pass
