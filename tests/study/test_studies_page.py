"""The plans of docs/studies.md are plans."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from evenkeel.methods import parse_mix
from evenkeel.study import Plan

PAGE = (Path(__file__).parents[2] / "docs" / "studies.md").read_text(encoding="utf-8")
PLANS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("text", PLANS)
def test_its_plans_can_be(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "transformers.integrations.integration_utils.get_available_reporting_integrations", lambda: ["tensorboard"]
    )
    plan = Plan.checked(yaml.safe_load(text), where="docs/studies.md")
    for method in plan.expanded_methods():
        parse_mix(method)
    assert list(plan.grid())


def test_its_whole_plan_has_every_field_of_the_recipe() -> None:
    content = yaml.safe_load(PLANS[0])
    assert set(content["training"]) == set(type(Plan.checked(content, where="it").training).model_fields)


def test_its_numbers() -> None:
    apart = Plan.checked(yaml.safe_load(PLANS[1]), where="docs/studies.md")
    assert sum(run.method == "full" for run in apart.grid()) == 25
