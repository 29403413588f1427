from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import fisher_exact
from tests.study._small import MakePlan, rows, write_csv

from evenkeel.errors import DataError
from evenkeel.measure import TELEMETRY
from evenkeel.study import Plan, RunResult, Study, StudyFolder, execute
from evenkeel.tasks import score


def first(plan: Plan, **options: Any) -> RunResult:
    job = Study(plan, StudyFolder(Path("unused"))).jobs()[0]
    return execute(job.spec, job.task, model=job.model, **options)


@pytest.fixture(scope="module")
def result(make_plan: MakePlan) -> RunResult:
    return first(make_plan())


# --- the same seed, the same run


def test_the_same_seed_gives_the_same_run(result: RunResult, make_plan: MakePlan) -> None:
    again, other = first(make_plan()), first(make_plan(seeds=[2]))
    assert all(table.equals(again.tables[name]) for name, table in result.tables.items())
    assert result.outcome["scores"] == again.outcome["scores"]
    assert not other.tables["predictions"].equals(result.tables["predictions"])


# --- what a run records


def test_predictions_are_in_the_order_of_the_data(result: RunResult) -> None:
    table = result.tables["predictions"].to_pydict()
    assert table["part"] == ["validation"] * 24
    assert table["example"] == list(range(24))
    assert table["label"] == [int(label) for _, label in rows(24)]
    assert table["prediction"] == np.argmax(table["logits"], axis=1).tolist()


def test_equal_texts_get_equal_logits(make_plan: MakePlan, tmp_path: Path) -> None:
    # texts of many lengths, each four times: a prediction that strayed to another example would show
    texts = [(" ".join(["good"] * length), str(length % 2)) for length in (9, 1, 5, 3, 12, 2, 7)] * 4
    path = write_csv(tmp_path / "lengths.csv", texts)
    logits = np.array(
        first(make_plan(tasks=[{"name": "lengths", "train": path, "validation": path}]))
        .tables["predictions"]["logits"]
        .to_pylist()
    )
    blocks = logits.reshape(4, 7, 2)
    np.testing.assert_allclose(blocks, np.broadcast_to(blocks[0], blocks.shape), atol=1e-5)
    assert np.ptp(blocks[0], axis=0).min() > 1e-4  # and texts of another length get others


def test_the_outcome_follows_from_the_predictions(result: RunResult) -> None:
    labels, predictions = (result.tables["predictions"][name].to_pylist() for name in ("label", "prediction"))
    outcome = result.outcome
    assert not result.diverged
    assert outcome["scores"] == outcome["accuracy"] == {"validation": score("accuracy", labels, predictions)}
    assert outcome["majority"] == {"validation": 0.5}
    table = [[sum(pair == (i, j) for pair in zip(labels, predictions, strict=True)) for j in (0, 1)] for i in (0, 1)]
    assert outcome["failed"] is bool(fisher_exact(table, alternative="greater").pvalue > 0.05)
    assert outcome["failed_by_majority"] is (outcome["scores"]["validation"] <= 0.5)
    assert outcome["constant"] is (len(set(predictions)) == 1)


def test_the_curves_are_whole(result: RunResult) -> None:
    log, telemetry = result.tables["log"].to_pydict(), result.tables["telemetry"].to_pydict()
    assert result.outcome["steps"] == 8  # 32 examples, 8 a step, 2 epochs
    assert log["step"] == list(range(1, 9))
    assert np.isfinite(log["loss"]).all()
    assert log["learning_rate"] == pytest.approx([5e-3 * (8 - step) / 8 for step in range(8)])
    assert result.tables["telemetry"].schema.equals(TELEMETRY)
    assert sorted(set(telemetry["step"])) == [1, 3, 5, 7, 8]  # and the last
    assert {"layer.0.query.weight", "layer.1.query.weight"} <= set(telemetry["component"])
    empty = {name for name, column in telemetry.items() if None in column}
    # Biases begin as zeros, without an angle; nothing limits updates.
    assert empty == {"layer", "cosine_distance", "phase_cosine_distance", "update_coefficient"}
    last = {row["component"]: row for row in result.tables["telemetry"].to_pylist() if row["step"] == 8}
    assert all(row["rms_change"] > 0 for row in last.values())


def test_the_record_says_how_the_run_trained(result: RunResult, make_plan: MakePlan) -> None:
    outcome = result.outcome
    assert outcome["health"] == {"nonfinite_steps": 0, "vanishing": False, "vanished_layers": 0.0, "spikes": 0}
    assert outcome["racing"]["components"] == len(set(result.tables["telemetry"]["component"].to_pylist()))
    assert 0 < outcome["racing"]["half_time_median"] < outcome["racing"]["time_to_90_median"] < 1
    assert outcome["racing"]["half_time_spread"] > 0
    assert outcome["convergence"]["loss_area"] == pytest.approx(np.mean(result.tables["log"]["loss"]), rel=0.1)
    diverged = first(make_plan(training={"learning_rate": 1e30})).outcome
    assert diverged["health"]["nonfinite_steps"] > 0
    assert diverged["convergence"]["loss_area"] is None


def test_the_outcome_is_json_and_tells_no_secrets(
    result: RunResult, make_plan: MakePlan, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    spec = Study(make_plan(), StudyFolder(Path("unused"))).jobs()[0].spec
    said = json.dumps([result.outcome, first(make_plan()).outcome, spec.model_dump(mode="json")], allow_nan=False)
    assert "hf_secret" not in said
    assert str(small_model.parent) not in said
    assert str(Path.home()) not in said.replace("//", "")
    assert f'"{getpass.getuser()}"' not in said
    made_with = {"versions", "python", "device", "threads", "precision", "data", "model"}
    assert set(result.outcome["provenance"]) - {"commit", "dirty"} == made_with  # these two only from a checkout
    assert result.outcome["provenance"]["data"] == spec.data_fingerprint
    assert {"evenkeel", "torch", "numba"} <= set(result.outcome["provenance"]["versions"])


# --- runs that go wrong


def test_a_run_that_diverges_is_a_result(make_plan: MakePlan) -> None:
    result = first(make_plan(training={"learning_rate": 1e30}))
    outcome = result.outcome
    assert result.diverged
    assert outcome["scores"] == outcome["accuracy"] == {"validation": None}
    assert (outcome["failed"], outcome["failed_by_majority"], outcome["constant"]) == (True, True, False)
    json.dumps(outcome, allow_nan=False)


def test_a_run_that_learns_nothing_has_failed_by_both_lines(make_plan: MakePlan) -> None:
    outcome = first(make_plan(training={"learning_rate": 1e-30})).outcome
    assert (outcome["failed"], outcome["failed_by_majority"]) == (True, True)


def test_a_model_that_diverged_is_not_saved(make_plan: MakePlan, tmp_path: Path) -> None:
    first(make_plan(training={"learning_rate": 1e30}), save_to=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("group_by_length", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", ["gradual-unfreezing", "component-clip:max_norm=0.01+gradual-unfreezing:epochs=1"])
def test_methods_are_mixed_by_name(make_plan: MakePlan, method: str, group_by_length: bool) -> None:
    result = first(make_plan(methods=[method], training={"epochs": 1, "group_by_length": group_by_length}))
    assert result.outcome["steps"] == 8  # 4 for each of 2 blocks
    seen: dict[int, set[str]] = {}
    for row in result.tables["telemetry"].to_pylist():
        seen.setdefault(row["step"], set()).add(row["component"])
    assert "layer.0.query.weight" not in seen[3]
    assert "layer.0.query.weight" in seen[5]


def test_the_jobs_are_refused_before_anything_starts(make_plan: MakePlan, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "one.csv", [("good", "1"), ("bad", "1")])
    with pytest.raises(DataError, match="have the label '1'"):
        first(make_plan(tasks=[{"name": "one", "train": path, "validation": path}]))
