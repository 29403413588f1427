from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from tests.study._small import InlineEngine, MakePlan, small_data, small_model

from evenkeel.errors import StoreError
from evenkeel.report import write_report
from evenkeel.study import Store, Study, StudyFolder, open_study, pack

__all__ = ["small_data", "small_model"]


def test_a_packed_study_is_small_and_goes_on(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan(methods=["full"], seeds=1)
    folder = StudyFolder(tmp_path / "study")
    Study(plan, folder).run(InlineEngine())
    write_report(folder.path)
    packed = pack(folder.path, tmp_path / "packed")
    report = {"report.html", "results.md", "results.csv", "results.tex", "claims.md", "claims.csv", "movements.parquet"}
    assert {entry.name for entry in packed.path.iterdir()} == {"study.sqlite", *report}
    assert open_study(packed.path)[:2] == open_study(folder.path)[:2]
    again = StudyFolder(shutil.copytree(packed.path, tmp_path / "again"))
    before = [run.attempts for run in open_study(again.path)[1]]
    runs = Study(plan, again).run(InlineEngine())
    assert [run.attempts for run in runs] == before == [1]  # nothing was run a second time
    more = Study(plan.model_copy(update={"seeds": (1, 2)}), again).run(InlineEngine())
    assert [run.status in ("done", "failed") for run in more] == [True, True]


def test_nothing_is_written_over(tmp_path: Path) -> None:
    study = tmp_path / "study"
    study.mkdir()
    with closing(Store(study / "study.sqlite")):
        pass
    with pytest.raises(StoreError, match="has no plan yet"):
        pack(study, tmp_path / "packed")
    with pytest.raises(StoreError, match="holds no study"):
        pack(tmp_path / "nowhere", tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_a_folder_with_something_in_it_is_refused(make_plan: MakePlan, tmp_path: Path) -> None:
    study = StudyFolder(tmp_path / "study")
    with closing(Store(study.path.mkdir() or study.store)) as store:
        store.save_plan(make_plan(seeds=1), [])
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("dear")
    with pytest.raises(StoreError, match="is not empty; name a new one"):
        pack(study.path, full)
    assert [entry.name for entry in full.iterdir()] == ["mine"]


def test_a_driver_that_writes_is_not_disturbed(make_plan: MakePlan, tmp_path: Path) -> None:
    study = StudyFolder(tmp_path / "study")
    study.path.mkdir()
    with closing(Store(study.store)) as store:
        store.save_plan(make_plan(seeds=1), [])
        packed = pack(study.path, tmp_path / "packed")
        with closing(sqlite3.connect(packed.store)) as copy:
            assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        store.requeue("error")  # writes
