"""The plans under ``studies/`` can be run as they stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from evenkeel.study import load_plan

PLANS = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_a_plan_makes_runs(path: Path) -> None:
    assert sum(1 for _ in load_plan(path).grid()) > 0


def test_there_are_plans() -> None:
    assert {path.stem.split("-")[0] for path in PLANS} >= {"paper"}
