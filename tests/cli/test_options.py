from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from evenkeel.cli import _options as options
from evenkeel.cli.finetune import finetune
from evenkeel.cli.study import study
from evenkeel.errors import PlanError
from evenkeel.study import Plan, Training


def parameters(command: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(command).parameters)


@pytest.mark.parametrize("command", [study, finetune])
def test_defaults_of_the_recipe_are_those_of_plans(command: Any) -> None:
    found = {name: item.default for name, item in parameters(command).items() if name in Training.model_fields}
    fields = {name: field.default for name, field in Training.model_fields.items() if name != "record_every"}
    assert found == fields


@pytest.mark.parametrize("command", [study, finetune])
def test_every_field_of_a_task_has_an_option(command: Any) -> None:
    plan = Plan.checked({"tasks": ["rte"], "seeds": 1}, where="the test")
    fields = set(type(plan.tasks[0]).model_fields) - {"name"}
    assert fields <= set(parameters(command))
    assert all(parameters(command)[name].default is None for name in fields)
    assert "shared" not in parameters(command)


@pytest.mark.parametrize(
    ("task", "given", "names"),
    [
        ("rte, cola", {}, ["rte", "cola"]),
        (None, {"train": Path("/data/reviews/train.csv")}, ["reviews"]),
        ("mine", {"train": Path("/data/reviews/train.csv")}, ["mine"]),
    ],
)
def test_tasks_are_named(task: str | None, given: dict[str, Any], names: list[str]) -> None:
    assert [item["name"] for item in options.Shared(task=given, training={}).named(task)] == names


def test_there_must_be_a_task() -> None:
    with pytest.raises(PlanError, match="no task was given; name one with --task, or give your own files"):
        options.Shared(task={}, training={}).named(None)
