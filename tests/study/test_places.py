from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evenkeel.study import Plan
from evenkeel.study._places import without_places


def made(**changes: Any) -> Plan:
    return Plan.checked({"tasks": ["rte"], "seeds": 2, **changes}, where="the test")


def test_a_plan_without_places_is_itself() -> None:
    assert without_places(made()) == made()
    assert without_places(made(models=["tiny", "org/name"])).models == ("tiny", "org/name")


@pytest.mark.parametrize("file", ["/home/zelda/x/train.csv", "~/x/train.csv", "../train.csv", "train.csv"])
def test_files_are_named_by_their_last_part(file: str) -> None:
    plan = made(tasks=[{"name": "a", "train": file, "validation": file, "text": ["b"]}])
    (task,) = without_places(plan).tasks
    assert (task.train, task.validation, task.text) == (Path("train.csv"), Path("train.csv"), ("b",))


def test_folders_of_models_are_too_wherever_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    models = ["here", "/home/zelda/m", "tiny"]
    plan = without_places(made(models=models, exclude=[{"model": "/home/zelda/m"}]))
    assert plan.models == ("here", "m", "tiny")
    assert plan.exclude == ({"model": "m"},)


def test_the_same_name_in_two_places_is_told_apart() -> None:
    one, other = without_places(made(models=["/a/m", "/b/m"])).models
    assert one != other
    assert (one[8:], other[8:]) == ("/m", "/m")
    assert without_places(made(models=["/a/m", "/b/m"])).models == (one, other)  # a place has one mark
