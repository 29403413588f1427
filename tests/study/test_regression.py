"""A regression, from a file to a run's result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from tests.study._small import MIDDLES, NOUNS, InlineEngine, MakePlan, write_csv

from evenkeel.errors import EvenkeelError
from evenkeel.study import Plan, RunResult, Study, StudyFolder, execute, prepare

HEIGHT = {"bad": 0.0, "good": 4.0, "was": 0.0, "is": 0.5, "was very": 1.0, "is quite": 1.5}


@pytest.fixture(scope="module")
def plan(make_plan: MakePlan, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Plan]:
    """Make a plan of a regression: how good a thing is said to be."""
    folder = tmp_path_factory.mktemp("regression")
    table = [
        (f"the {noun} {middle} {word}", str(HEIGHT[middle] + HEIGHT[word]))
        for noun in NOUNS
        for middle in MIDDLES
        for word in ("good", "bad")
    ]
    path = write_csv(folder / "all.csv", table)
    task = {"name": "height", "train": path, "validation": path, "metric": "pearson"}

    def made(**changes: object) -> Plan:
        training = {"learning_rate": 2e-2, "epochs": 8.0} | dict(changes.pop("training", {}))  # type: ignore[call-overload]
        return make_plan(tasks=[task | dict(changes.pop("task", {}))], training=training, **changes)  # type: ignore[call-overload]

    return made


def first(plan: Plan) -> RunResult:
    job = Study(plan, StudyFolder(Path("unused"))).jobs()[0]
    return execute(job.spec, job.task, model=job.model, measures=job.measures)


@pytest.fixture(scope="module")
def result(plan: Callable[..., Plan]) -> RunResult:
    return first(plan(measures={"layer_replacement": True}))


def test_it_learns_and_is_scored_by_correlations(result: RunResult) -> None:
    table, outcome = result.tables["predictions"].to_pydict(), result.outcome
    assert table["label"][:4] == [4.0, 0.0, 4.5, 0.5]
    assert table["prediction"] == [row[0] for row in table["logits"]]
    expected = {
        "pearson": pytest.approx(pearsonr(table["label"], table["prediction"]).statistic),
        "spearman": pytest.approx(spearmanr(table["label"], table["prediction"]).statistic),
    }
    assert outcome["all_scores"] == {"validation": expected}
    assert outcome["scores"] == {"validation": outcome["all_scores"]["validation"]["pearson"]}
    assert outcome["scores"]["validation"] > 0.5
    assert outcome["majority"] == {"validation": 0.0}
    assert outcome["all_majority"] == {"validation": {"pearson": 0.0, "spearman": 0.0}}
    assert (outcome["failed"], outcome["failed_by_majority"], outcome["constant"]) == (False, False, False)
    assert "accuracy" not in outcome
    json.dumps(outcome, allow_nan=False)


def test_the_loss_is_the_mean_squared_error(result: RunResult) -> None:
    table = result.tables["predictions"].to_pydict()
    error = np.mean(np.square(np.array(table["label"]) - np.array(table["prediction"])))
    rows = result.tables["replacement"].to_pylist()
    assert rows[0]["loss"] == pytest.approx(error, rel=1e-5)
    assert rows[0]["score"] == pytest.approx(result.outcome["scores"]["validation"])
    assert len(rows) == 3
    losses = result.tables["log"]["loss"].to_pylist()
    assert losses[0] > 2 * losses[-1]


def test_a_regression_that_learns_nothing_has_failed(plan: Callable[..., Plan]) -> None:
    outcome = first(plan(training={"learning_rate": 1e-30, "epochs": 1})).outcome
    assert outcome["failed"] is True


def test_a_regression_that_diverges_is_a_result(plan: Callable[..., Plan]) -> None:
    result = first(plan(training={"learning_rate": 1e30, "epochs": 1}))
    assert result.diverged
    assert result.outcome["all_scores"] == {"validation": {"pearson": None, "spearman": None}}
    assert (result.outcome["failed"], result.outcome["failed_by_majority"]) == (True, True)
    json.dumps(result.outcome, allow_nan=False)


def test_methods_are_told_what_the_task_is(plan: Callable[..., Plan]) -> None:
    assert Study(plan(methods=["smart"]), StudyFolder(Path("unused"))).jobs()
    with pytest.raises(EvenkeelError, match="r-drop.*regression"):
        Study(plan(methods=["r-drop"]), StudyFolder(Path("unused"))).jobs()


def test_a_study_of_a_regression_is_run(plan: Callable[..., Plan], tmp_path: Path) -> None:
    runs = Study(plan(seeds=[1], training={"epochs": 1}), StudyFolder(tmp_path)).run(InlineEngine())
    assert [run.status for run in runs] == ["done", "done"]
    assert {run.spec.metric for run in runs} == {"pearson"}


def test_half_of_validation_is_held_out(plan: Callable[..., Plan], tmp_path: Path) -> None:
    made = plan(task={"test_split": "half"}, training={"epochs": 1}, seeds=[1], methods=["full"])
    parts = prepare(made.tasks[0], made.models[0], 128).parts
    assert {name: len(part) for name, part in parts.items()} == {"train": 32, "validation": 16, "test": 16}
    (run,) = Study(made, StudyFolder(tmp_path)).run(InlineEngine())
    assert set(run.outcome["scores"]) == set(run.outcome["all_majority"]) == {"validation", "test"}
