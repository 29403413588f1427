from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evenkeel.calibrate._probe as probing
from evenkeel.methods import parse_mix
from evenkeel.study import Study, StudyFolder, load_plan

Call = Callable[..., Any]


def usual(data: Path, model: Path, out: Path, *more: object) -> list[object]:
    files = ["--train", data / "train.csv", "--validation", data / "validation.csv", "--model", model]
    return [*files, "--out", out, "--epochs", "2", "--batch-size", "8", "--seeds", "1", *more]


def test_proposals_are_shown_and_written(
    evenkeel: Call, small_data: Path, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small_data)  # file names that are given are not those of the plan's folder
    out = tmp_path / "out"
    files = ["--train", "train.csv", "--validation", "validation.csv"]
    said = evenkeel("calibrate", *usual(small_data, small_model, out, *files))
    assert (said.code, said.err) == (0, "")
    printed = " ".join(said.out.split())
    assert "learning rate" in printed
    assert "None of this is tested on your task: plan.yaml is the study that does it." in printed
    assert sorted(path.name for path in out.iterdir()) == ["calibration.html", "calibration.json", "plan.yaml"]

    numbers = json.loads((out / "calibration.json").read_text(encoding="utf-8"))
    assert numbers["steps"] == {"run": 8, "steady": 17, "rising": 33}
    assert numbers["default_rule"] == numbers["rules"][0]["name"] == "at-proposed-rate"
    assert math.isfinite(numbers["learning_rate"]["value"])
    assert (out / "calibration.html").read_text(encoding="utf-8").count("Plotly.newPlot") >= 1

    plan = load_plan(out / "plan.yaml")
    assert list(plan.methods) == numbers["methods"]
    assert plan.training.learning_rate == pytest.approx(numbers["learning_rate"]["value"], rel=0.06)
    monkeypatch.chdir(tmp_path)
    jobs = Study(plan, StudyFolder(tmp_path / "study")).jobs()  # data, model and methods are looked at
    assert len(jobs) == 3 * 10
    for method in plan.methods:
        assert parse_mix(method).methods


@pytest.mark.slow
def test_what_it_proposes_is_what_finetune_takes(
    evenkeel: Call, small_data: Path, small_model: Path, tmp_path: Path
) -> None:
    assert evenkeel("calibrate", *usual(small_data, small_model, tmp_path / "out")).code == 0
    plan = load_plan(tmp_path / "out" / "plan.yaml")
    files = ["--train", small_data / "train.csv", "--validation", small_data / "validation.csv"]
    for number, method in enumerate(plan.methods):
        out = tmp_path / str(number)
        rate = plan.training.learning_rate
        said = evenkeel("finetune", *files, "--model", small_model, "--methods", method, "--lr", rate, "--out", out)
        assert said.code == 0
        assert json.loads((out / "metrics.json").read_text(encoding="utf-8"))["spec"]["method"] == method


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "tinny"], "unknown model 'tinny': did you mean 'tiny'"),
        (["--task", "a,b"], "a calibration is of one task, but got 'a,b'; calibrate each on its own"),
        (["--text", "sentense"], "unknown column 'sentense': did you mean 'sentence'"),
        (["--lr", "0"], "training.learning_rate: input should be greater than 0"),
        (["--lowest", "1e-2", "--highest", "1e-3"], "the learning rate cannot rise from 0.01 to 0.001; give two"),
        (["--quantile", "1"], "thresholds at the quantile 1 of the norms would clip everything or nothing; give"),
        (["--travel", "-1"], "cannot be allowed to travel -1 times its weights' norm; give a positive number"),
        (["--seeds", "0"], "Invalid value for '--seeds'"),
    ],
)
def test_bad_input_is_one_message_before_training(
    evenkeel: Call,
    small_data: Path,
    small_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    said: str,
) -> None:
    monkeypatch.setattr(probing, "execute", lambda *_, **__: pytest.fail("training began"))
    found = evenkeel("calibrate", *usual(small_data, small_model, tmp_path / "out", *options))
    assert found.code == 2
    assert said in " ".join(found.err.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_refused(
    evenkeel: Call, small_data: Path, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "execute", lambda *_, **__: pytest.fail("training began"))
    (tmp_path / "thesis.txt").touch()
    found = evenkeel("calibrate", *usual(small_data, small_model, tmp_path))
    assert (found.code, "exists and is not empty; choose a new folder with --out" in found.err) == (2, True)


def test_an_interruption_saves_nothing(
    evenkeel: Call, small_data: Path, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(probing, "execute", interrupted)
    found = evenkeel("calibrate", *usual(small_data, small_model, tmp_path / "out"))
    assert (found.code, found.err) == (130, "interrupted: nothing was saved\n")
    assert not (tmp_path / "out").exists()
