from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.study._small import InlineEngine, MakePlan

from evenkeel.study import Study, StudyFolder

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def study(make_plan: MakePlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = StudyFolder(tmp_path_factory.mktemp("studies") / "small")
    plan = make_plan(seeds=6, training={"epochs": 1.0}, measures={"evaluations": 2})
    Study(plan, folder).run(InlineEngine())
    return folder.path


def test_verdicts_stand_below_the_table(evenkeel: Call, study: Path) -> None:
    said = evenkeel("report", study)
    assert said.code == 0
    assert "All 12 runs have a result." in said.out
    assert "- small, small: component-clip: " in " ".join(said.out.split())
    assert {"report.html", "results.md", "results.csv", "results.tex"} <= {path.name for path in study.iterdir()}


def test_a_finished_study_is_not_watched_for_long(evenkeel: Call, study: Path) -> None:
    said = evenkeel("report", study, "--watch")
    assert said.code == 0
    assert "report:" in said.out


def test_a_page_follows_a_study_that_goes_on(evenkeel: Call, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = sys.modules["evenkeel.cli.report"]
    looks = iter([1, 0])

    from evenkeel.study import open_study as really

    def open_study(path: Path) -> Any:
        plan, runs, folder = really(path)
        left = next(looks, 0)
        waiting = [type(run)(**{**vars(run), "status": "queued", "outcome": {}}) for run in runs[:left]]
        return plan, [*waiting, *runs[left:]], folder

    monkeypatch.setattr("evenkeel.study.open_study", open_study)
    monkeypatch.setattr(command, "_SECONDS", 0)
    said = evenkeel("report", study, "--watch")
    assert said.code == 0
    assert "1 of 12 runs left: " in said.out


def test_scores_from_elsewhere_have_a_report(evenkeel: Call, tmp_path: Path) -> None:
    rows = [f"{method},{seed},{0.7 + 0.001 * seed - 0.1 * (method == 'b')}" for method in "ab" for seed in range(10)]
    scores = tmp_path / "mine.csv"
    scores.write_text("\n".join(["method,seed,score", *rows]) + "\n", encoding="utf-8")
    said = evenkeel("report", scores)
    assert said.code == 0
    assert "note: the file has no column failed" in said.out
    assert "b: worse than a" in " ".join(said.out.split())
    assert (tmp_path / "mine-report" / "report.html").is_file()
    assert evenkeel("report", scores, "--out", tmp_path / "there").code == 0
    assert (tmp_path / "there" / "results.csv").is_file()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["scores", "--watch"], "--figures and --watch are for the folder of a study"),
        (["study", "--out", "x"], "--out is for scores of your own"),
        (["study", "--figures", "gif"], "figures can be written as svg, pdf, png, and not as 'gif'"),
        (["nothing"], "holds no study"),
    ],
)
def test_what_cannot_be_is_said(evenkeel: Call, study: Path, tmp_path: Path, options: list[str], said: str) -> None:
    scores = tmp_path / "scores.csv"
    scores.write_text("method,score\na,1\n", encoding="utf-8")
    places = {"scores": scores, "study": study, "nothing": tmp_path}
    result = evenkeel("report", places[options[0]], *options[1:])
    assert result.code == 2
    assert said in " ".join(result.err.split())


def test_two_studies_are_compared(evenkeel: Call, study: Path, make_plan: MakePlan, tmp_path: Path) -> None:
    other = StudyFolder(tmp_path / "other")
    Study(make_plan(seeds=6, methods=["full"], training={"epochs": 1.0}), other).run(InlineEngine())
    said = evenkeel("compare", study, other.path)
    assert said.code == 0
    text = " ".join(said.out.split())
    assert "only in the first: small, small, component-clip" in text
    assert "not the same" not in text
    assert "+0.000 1.00 3/6 / 3/6 not shown to" in text  # the same seeds on the same machine


def test_studies_that_share_nothing_are_an_error(
    evenkeel: Call, study: Path, make_plan: MakePlan, tmp_path: Path
) -> None:
    other = StudyFolder(tmp_path / "other")
    Study(make_plan(seeds=1, methods=["full"], training={"epochs": 1.0, "weight_decay": 0.1}), other).run(
        InlineEngine()
    )
    said = evenkeel("compare", study, other.path)
    assert said.code == 2
    assert "share no task, model, recipe and method" in " ".join(said.err.split())


def test_a_study_is_packed(evenkeel: Call, study: Path, tmp_path: Path) -> None:
    said = evenkeel("pack", study, tmp_path / "kept")
    assert said.code == 0
    assert said.out.startswith(f"packed: {tmp_path / 'kept'} (")
    assert evenkeel("status", tmp_path / "kept").out == evenkeel("status", study).out
    refused = evenkeel("pack", study, tmp_path / "kept")
    assert refused.code == 2
    assert "is not empty; name a new one" in refused.err
