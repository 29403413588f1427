from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.study._small import MakePlan

from evenkeel.calibrate import (
    DEFAULT_RULE,
    Probe,
    Proposal,
    RisingRate,
    StopWhenExploded,
    jobs_of,
    plan_text,
    probe,
    propose,
    rising_rates,
)
from evenkeel.errors import PlanError
from evenkeel.methods import parse_mix
from evenkeel.study import Plan, load_plan

RECIPE = {"learning_rate": 1e-4, "epochs": 2.0}


@pytest.fixture(scope="module")
def plan(make_plan: MakePlan) -> Plan:
    return make_plan(methods=["full"], seeds=[4, 5], training=RECIPE)


@pytest.fixture(scope="module")
def steps() -> list[int]:
    return []


@pytest.fixture(scope="module")
def found(plan: Plan, steps: list[int]) -> Probe:
    return probe(jobs_of(plan), lowest=1e-5, highest=3e-1, on_step=lambda: steps.append(1))


@pytest.fixture(scope="module")
def proposal(found: Probe) -> Proposal:
    return propose(found)


def test_a_probe_has_fifty_steps_of_each_seed(found: Probe, steps: list[int]) -> None:
    assert found.seeds == (4, 5)
    assert (found.budget.run, found.budget.steady, found.budget.rising) == (8, 17, 33)
    assert found.losses.shape == (2, 33)
    assert [recorded.steps.tolist() for recorded in found.steady] == [list(range(1, 18))] * 2
    assert len(steps) == 34 + np.isfinite(found.losses).sum()


def test_the_rate_really_rises(found: Probe) -> None:
    # Adam's steps are in proportion to the rate, but for its warm moments: over four decades that is hardly seen.
    recorded = found.rising[0]
    moved = np.nanmedian(recorded.column("update_norm"), axis=1)[:20]
    slope = np.polyfit(np.log10(found.rates[:20]), np.log10(moved), 1)[0]
    assert slope == pytest.approx(1, abs=0.25)
    steady = np.nanmedian(found.steady[0].column("update_norm"), axis=1)
    assert steady.max() / steady.min() < 10


def test_both_trainings_of_a_seed_begin_alike(found: Probe) -> None:
    for steady, rising in zip(found.steady, found.rising, strict=True):
        np.testing.assert_array_equal(steady.column("norm")[0], rising.column("norm")[0])
    heads = [recorded.column("norm")[0] for recorded in found.steady]
    assert (heads[0] != heads[1]).any()


def test_proposals_are_in_range(found: Probe, proposal: Proposal) -> None:
    assert 1e-6 <= proposal.learning_rate.value <= 3e-2
    assert {one.role for one in proposal.thresholds} == {role or "other" for role in found.steady[0].roles}
    assert all(0 < one.max_norm < 100 and one.clipped <= 0.2 for one in proposal.thresholds)
    assert proposal.rules[0].name == DEFAULT_RULE
    assert 0 < proposal.max_update < 1


def test_the_plan_is_one_that_a_study_takes(plan: Plan, proposal: Proposal, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(plan_text(plan, proposal, name="plan.yaml"), encoding="utf-8")
    made = load_plan(path)
    assert made.tasks == plan.tasks
    assert made.models == plan.models
    assert made.training.learning_rate == pytest.approx(proposal.learning_rate.value, rel=0.06)
    assert (made.training.epochs, made.training.batch_size) == (2, 8)
    clip, limit = (parse_mix(method).methods[0] for method in made.methods[1:])
    assert clip.max_norm == {one.role: one.max_norm for one in proposal.thresholds}  # type: ignore[attr-defined]
    assert limit.max_update == proposal.max_update  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "changes", [{"methods": ["component-clip"]}, {"sweep": {"training.learning_rate": [1e-5, 1e-4]}}]
)
def test_other_plans_are_refused(make_plan: MakePlan, changes: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="a calibration is of one model on one task, by the method full"):
        jobs_of(make_plan(**{"methods": ["full"], **changes}))


class _Control:
    should_training_stop = False


@pytest.mark.parametrize(
    ("losses", "stops"),
    [
        ([0.7] * 12, None),
        ([0.7] * 6 + [2.0, 2.2, 2.4], 9),  # the mean of three is above 2.1
        ([0.7] * 6 + [6.0, 0.7, 0.7], 7),  # of so high a loss alone
        ([0.7, 0.7, float("nan")], 3),
        ([0.7, 5.0, 5.0], None),  # too early to say
    ],
)
def test_a_loss_that_explodes_ends_the_test(losses: list[float], stops: int | None) -> None:
    watch, control = StopWhenExploded(), _Control()
    seen = 0
    for loss in losses:
        watch.on_log(None, None, control, {"loss": loss})  # type: ignore[arg-type]
        watch.on_log(None, None, control, {"train_runtime": 1.0})  # type: ignore[arg-type]
        seen += 1
        if control.should_training_stop:
            break
    assert (seen if control.should_training_stop else None) == stops


def test_groups_keep_their_proportions() -> None:
    class Optimizer:
        param_groups = ({"lr": 1e-3}, {"lr": 5e-4})

    class At:
        learning_rate, global_step = 1e-3, 1

    rising = RisingRate(rising_rates(1e-4, 1e-2, 3))
    rising.on_train_begin(At, At, None, optimizer=Optimizer)  # type: ignore[arg-type]
    rising.on_step_begin(At, At, None, optimizer=Optimizer)  # type: ignore[arg-type]
    assert [group["lr"] for group in Optimizer.param_groups] == [pytest.approx(1e-3), pytest.approx(5e-4)]
