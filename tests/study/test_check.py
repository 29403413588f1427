"""What is found out before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.study._small import MakePlan

from evenkeel.errors import EvenkeelError, MethodError, PlanError
from evenkeel.study import Study, StudyFolder, execute


def jobs(make_plan: MakePlan, tmp_path: Path, **changes: Any) -> Any:
    return Study(make_plan(**changes), StudyFolder(tmp_path / "out")).jobs()


def test_everything_that_is_wrong_is_said_at_once(make_plan: MakePlan, tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        jobs(
            make_plan,
            tmp_path,
            methods=["fulll", "component-clip"],
            models=["tinny"],
            tasks=[{"name": "a", "train": "none.csv", "validation": "none.csv"}],
            sweep={"component-clip.max_nrom": [1]},
        )
    lines = str(caught.value).splitlines()
    assert lines[0] == "the plan has 4 faults:"
    said = ["unknown method 'fulll'", "unknown option of component-clip 'max_nrom'", "no file 'none.csv'", "'tinny'"]
    assert all(part in line for part, line in zip(said, lines[1:], strict=True))
    assert not (tmp_path / "out").exists()


def test_a_single_fault_keeps_its_class(make_plan: MakePlan, tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="'max_norm' twice"):
        jobs(make_plan, tmp_path, methods=["component-clip:max_norm=1"], sweep={"component-clip.max_norm": [2]})


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"optim": "adamw_of_nobody"}, "overrides: TrainingArguments refuses them: .*adamw_of_nobody"),
        ({"gradient_accumulation_steps": 3}, "batch_size 8 counts .* not to be split into 3 equal parts"),
    ],
)
def test_overrides_are_tried_beforehand(
    make_plan: MakePlan, tmp_path: Path, overrides: dict[str, Any], said: str
) -> None:
    with pytest.raises(EvenkeelError, match=said):
        jobs(make_plan, tmp_path, overrides=overrides)


def test_overrides_reach_the_training(make_plan: MakePlan, tmp_path: Path) -> None:
    plain = jobs(make_plan, tmp_path, methods=["full"], seeds=1)[0]
    (job,) = jobs(make_plan, tmp_path, methods=["full"], seeds=1, overrides={"max_steps": 3, "adam_beta2": 0.9})
    assert job.spec.id != plain.spec.id
    assert execute(job.spec, job.task, model=job.model).outcome["steps"] == 3


def test_accumulated_batches_are_as_large_as_the_plan_says(make_plan: MakePlan, tmp_path: Path) -> None:
    whole, halves = (
        jobs(make_plan, tmp_path, methods=["full"], seeds=1, overrides=overrides)[0]
        for overrides in ({}, {"gradient_accumulation_steps": 2})
    )
    steps = [execute(job.spec, job.task, model=job.model).outcome["steps"] for job in (whole, halves)]
    assert steps[0] == steps[1] == 8  # 32 examples, 8 of them a step, 2 epochs
