from __future__ import annotations

import importlib
import math
import sys

import numpy as np
import pytest

import evenkeel
import evenkeel.report
from evenkeel.report import results
from evenkeel.report._results import cells, groups

SCORES = [0.71, 0.55, 0.66, 0.57, 0.6]


def test_numbers_are_numpys(make_runs) -> None:
    (row,) = results(*make_runs({"full": SCORES}))
    assert (row.task, row.model, row.method, row.metric, row.majority) == ("rte", "tiny", "full", "accuracy", 0.55)
    assert (row.n, row.finished, row.total) == (5, 5, 5)
    assert row.mean == pytest.approx(np.mean(SCORES))
    assert row.std == pytest.approx(np.std(SCORES, ddof=1))
    assert (row.min, row.median, row.max) == (0.55, 0.6, 0.71)
    assert (row.failed, row.failed_majority, row.diverged) == (2, 1, 0)
    assert row.wall_seconds == 12.5


def test_diverged_runs_are_failed_and_have_no_score(make_runs) -> None:
    (row,) = results(*make_runs({"full": [0.7, "diverged", 0.6]}))
    assert (row.finished, row.n, row.diverged, row.failed, row.failed_majority) == (3, 2, 1, 1, 1)
    assert row.mean == pytest.approx(0.65)


def test_runs_without_a_result_count_only_in_the_total(make_runs) -> None:
    (row,) = results(*make_runs({"full": [0.7, "queued", "running", "error", "lost"]}))
    assert (row.total, row.finished, row.n, row.failed) == (5, 1, 1, 0)
    assert math.isnan(row.std)


def test_a_method_without_a_result_has_no_numbers(make_runs) -> None:
    (row,) = results(*make_runs({"full": ["queued"]}))
    assert row.metric is None
    assert all(math.isnan(value) for value in (row.majority, row.mean, row.std, row.median, row.wall_seconds))


def test_rows_stand_in_the_plans_order(make_runs) -> None:
    plan, runs = make_runs({"b": [0.7, 0.6], "a": [0.5, 0.6]}, tasks=["rte", "cola"], models=["y", "x"])
    rows = results(plan, runs)
    tasks, models, methods = ("rte", "cola"), ("y", "x"), ("b", "a")
    expected = [(task, model, method) for task in tasks for model in models for method in methods]
    assert [(row.task, row.model, row.method) for row in rows] == expected


def test_models_of_one_name_are_not_pooled(make_runs) -> None:
    plan, runs = make_runs({"full": [0.7, 0.6]})
    other = [run.spec.model_copy(update={"model_fingerprint": "f" * 16}) for run in runs]
    doubled = [*runs, *(type(run)(**{**vars(run), "spec": spec}) for run, spec in zip(runs, other, strict=True))]
    rows = results(plan, doubled)
    assert [(row.model, row.n) for row in rows] == [("tiny [mmmmmmmm]", 2), ("tiny [ffffffff]", 2)]


def test_groups_share_task_and_model(make_runs) -> None:
    plan, runs = make_runs({"a": [0.7], "b": [0.6]}, tasks=["rte", "cola"])
    found = [(task, model, [cell.method for cell in members]) for task, model, members in groups(cells(plan, runs))]
    assert found == [("rte", "tiny", ["a", "b"]), ("cola", "tiny", ["a", "b"])]


def test_tables_and_findings_do_without_plotly(make_runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evenkeel, "report", evenkeel.report)  # put back afterwards, like the modules
    for name in [name for name in sys.modules if name.startswith(("evenkeel.report", "plotly"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "plotly", None)  # importing it raises
    report = importlib.import_module("evenkeel.report")
    study = make_runs({"full": SCORES, "component-clip": SCORES})
    assert len(report.results(*study)) == 2
    assert report.results_table(*study).row_count == 3
    assert len(report.findings(*study)) > 1
    assert "full" in report.results_markdown(*study)
    with pytest.raises(ImportError):
        importlib.import_module("evenkeel.report._figures")


def test_runs_by_another_recipe_are_not_pooled(make_runs) -> None:
    plan, runs = make_runs({"full": [0.7, 0.6], "component-clip": [0.8, 0.7]})
    faster = [with_spec(run, training=plan.training.model_copy(update={"learning_rate": 1e-3})) for run in runs]
    rows = results(plan, [*runs, *faster, *(with_spec(run, overrides={"optim": "sgd"}) for run in faster)])
    assert [(row.model, row.method, row.n) for row in rows] == [
        (f"tiny, learning_rate {rate}, optim {optim}", method, 2)
        for rate, optim in (("2e-05", "unset"), ("0.001", "unset"), ("0.001", "sgd"))
        for method in ("full", "component-clip")
    ]


def test_runs_whose_seeds_vary_apart_are_pooled_and_told_apart(make_runs) -> None:
    plan, runs = make_runs({"full": [0.7, 0.6]})
    apart = [with_spec(run, seed=1, init_seed=run.spec.seed) for run in runs]
    (cell,) = cells(plan, list(reversed(apart)))
    assert [run.spec.draw for run in cell.runs] == ["init 1", "init 2"]


def with_spec(run, **changes):
    spec = run.spec.model_copy(update=changes)
    return type(run)(**{**vars(run), "id": spec.id, "spec": spec})
