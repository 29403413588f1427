"""Nothing of the machine's owner enters a study's folder: every byte of it is searched."""

from __future__ import annotations

import itertools
import os
import sqlite3
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pyarrow.parquet
import pytest
from tests.study._small import InlineEngine, MakePlan, save_data, save_model

from evenkeel.report import write_report
from evenkeel.study import Plan, RunRecord, Store, Study, StudyFolder
from evenkeel.study.engines import Report

SECRETS = {
    "HF_TOKEN": "hf_q1w2e3r4t5z6",
    "WANDB_API_KEY": "0123456789abcdefdeadbeef",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI",
    "SOME_VARIABLE": "a-value-of-no-name-that-warns",
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of somebody, with everything of the study below it."""
    home = tmp_path / "home" / "zelda"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    for name in ("LOGNAME", "USER"):
        monkeypatch.setenv(name, "zelda")
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return home


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield every file; what is packed, unpacked as well."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        yield str(path), path.name.encode() + b"\n" + path.read_bytes()
        if path.suffix == ".parquet":
            file = pyarrow.parquet.ParquetFile(path)
            yield f"{path} unpacked", f"{file.schema_arrow} {file.metadata.metadata} {file.read().to_pylist()}".encode()
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as packed:
                for name in packed.namelist():
                    yield f"{path}:{name}", packed.read(name)


def test_no_byte_of_a_study_tells_of_its_owner(make_plan: MakePlan, home: Path) -> None:
    (home / "data").mkdir()
    data, model = save_data(home / "data"), save_model(home / "models" / "mine")
    files = {"train": data / "train.csv", "validation": data / "validation.csv"}
    plan: Plan = make_plan(
        tasks=[{"name": "mine", **files}], models=[str(model)], methods=["full"], seeds=3,
        checkpoints={"every_steps": 3, "keep": True}, include=[{"model": str(model)}],
    )  # fmt: skip
    study = Study(plan, StudyFolder(home / "study"))

    def hide_the_model_from_the_second(report: Report) -> None:
        if report.job.spec.seed == 2:
            hidden, shown = model.with_name("hidden"), model
            (shown.rename(hidden), forget()) if report.event == "started" else hidden.rename(shown)

    runs = study.run(InlineEngine(), on_report=hide_the_model_from_the_second)
    write_report(study.folder.path)
    assert [run.status == "error" for run in runs] == [False, True, False]
    assert f"'~{str(model).removeprefix(str(home))}'" in (runs[1].error or "")

    searched = dict(contents(study.folder.path))
    assert any("checkpoint-6/optimizer.pt:" in name for name in searched)
    assert any("telemetry.parquet unpacked" in name for name in searched)
    words = [str(home), "zelda", str(Path(home).parent), *SECRETS.values(), *SECRETS]
    found = [
        (name, word) for (name, content), word in itertools.product(searched.items(), words) if word.encode() in content
    ]
    assert found == []
    assert_goes_on(study, runs)


def forget() -> None:
    from evenkeel.study import _prepare

    for kept in (_prepare.prepare, _prepare.load_data, _prepare.locate_model):
        kept.cache_clear()


def assert_goes_on(study: Study, runs: list[RunRecord]) -> None:
    """The plan that was kept is the same study's, although it does not say where anything is."""
    again = Study(study.plan, study.folder).run(InlineEngine())
    assert [run.attempts for run in again] == [run.attempts + (run.status == "error") for run in runs]
    with closing(Store.reading(study.folder.store)) as store:
        kept = store.plan
    assert kept is not None
    assert (kept.tasks[0].train, kept.models) == (Path("train.csv"), ("mine",))


def test_the_lock_tells_the_machine_and_the_process_and_nothing_else(home: Path) -> None:
    folder = StudyFolder(home / "study")
    folder.create()
    with folder.lock():
        said = (folder.path / ".driver.json").read_text(encoding="utf-8")
        assert f'"pid": {os.getpid()}' in said
        assert "zelda" not in said
    assert not (folder.path / ".driver.json").exists()


def test_two_models_of_one_name_are_told_apart_without_their_places(make_plan: MakePlan, home: Path) -> None:
    models = [str(save_model(home / place / "mine", layers=layers)) for place, layers in (("a", 2), ("b", 1))]
    plan = make_plan(models=models, methods=["full"], seeds=1)
    folder = StudyFolder(home / "study")
    runs = Study(plan, folder).run(InlineEngine())
    with closing(Store.reading(folder.store)) as store:
        kept = store.plan
    assert kept is not None
    assert all(name.endswith("/mine") and len(name) == len("01234567/mine") for name in kept.models)
    assert Study(plan, folder).run(InlineEngine()) == runs
    with closing(sqlite3.connect(folder.store)) as connection:
        assert "zelda" not in "".join(str(row) for row in connection.iterdump())
