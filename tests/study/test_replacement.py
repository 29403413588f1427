from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import fisher_exact
from tests import _models
from tests.study._small import InlineEngine, MakePlan, same_results
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from evenkeel.errors import PlanError
from evenkeel.measure import layer_weights
from evenkeel.study import Measures, Plan, RunResult, Study, StudyFolder, execute, prepare
from evenkeel.study import _check as checks
from evenkeel.study._replacement import PretrainedLayers
from evenkeel.study.engines import Job, work

ASKED = {"layer_replacement": True}
COLUMNS = {"k": pa.int32(), "part": pa.string(), "score": pa.float64(), "loss": pa.float64(), "failed": pa.bool_()}


def first(plan: Plan) -> Job:
    return Study(plan, StudyFolder(Path("unused"))).jobs()[0]


def run(plan: Plan, **options: Any) -> RunResult:
    job = first(plan)
    return execute(job.spec, job.task, model=job.model, measures=job.measures, **options)


# --- what the table says


def test_a_row_is_what_the_model_says_with_pretrained_layers_on_top(
    make_plan: MakePlan, small_model: Path, tmp_path: Path
) -> None:
    plan = make_plan(measures=ASKED)
    table = run(plan, save_to=tmp_path).tables["replacement"]
    assert dict(zip(table.schema.names, table.schema.types, strict=True)) == COLUMNS
    rows = table.to_pylist()
    assert [(row["k"], row["part"]) for row in rows] == [(0, "validation"), (1, "validation"), (2, "validation")]

    prepared = prepare(plan.tasks[0], plan.models[0], plan.training.max_length)
    data = prepared.parts["validation"]
    batch = prepared.tokenizer.pad({"input_ids": data["input_ids"][:]}, return_tensors="pt")
    labels = np.array(data["label"][:])
    pretrained = AutoModel.from_pretrained(small_model).state_dict()
    tuned = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    for row in rows:
        top = tuple(f"encoder.layer.{layer}." for layer in range(2 - row["k"], 2))
        tuned.bert.load_state_dict({n: tensor for n, tensor in pretrained.items() if n.startswith(top)}, strict=False)
        with torch.no_grad():
            logits = tuned(**batch).logits
        predicted = logits.argmax(dim=1).numpy()
        assert row["score"] == pytest.approx((predicted == labels).mean())
        assert row["loss"] == pytest.approx(nn.functional.cross_entropy(logits, torch.tensor(labels)).item(), rel=1e-5)
        counts = [[int(((labels == i) & (predicted == j)).sum()) for j in (0, 1)] for i in (0, 1)]
        assert row["failed"] is bool(fisher_exact(counts, alternative="greater").pvalue > 0.05)
    assert len({row["loss"] for row in rows}) == 3


@pytest.mark.slow
def test_a_study_of_the_embedded_model_keeps_the_table_of_every_run(tmp_path: Path) -> None:
    content = {
        "tasks": [{"name": "grammar/acceptability", "max_train_samples": 160}],
        "methods": ["full", "gradual-unfreezing:epochs=1"],
        "seeds": [1],
        "training": {"learning_rate": 1e-3, "epochs": 1},
        "measures": ASKED,
    }
    folder = StudyFolder(tmp_path / "study")
    runs = Study(Plan.checked(content, where="the test"), folder).run(InlineEngine())
    assert len(runs) == 2
    for run in runs:
        table = folder.read_run(run.id, "replacement")
        assert table is not None
        rows = table.to_pylist()
        layers = {row["layer"] for row in folder.read_run(run.id, "telemetry").to_pylist()} - {None}  # type: ignore[union-attr]
        places = [(k, part) for k in range(len(layers) + 1) for part in ("validation", "test")]
        assert [(row["k"], row["part"]) for row in rows] == places
        assert {row["part"]: row["score"] for row in rows if row["k"] == 0} == run.outcome["scores"]
        assert rows[0]["failed"] == run.outcome["failed"]
        assert len({row["loss"] for row in rows}) == len(rows)


def test_a_run_that_changed_nothing_has_the_same_loss_for_all(make_plan: MakePlan) -> None:
    found = run(make_plan(measures=ASKED, methods=["gradual-unfreezing"], training={"learning_rate": 1e-30}))
    losses = found.tables["replacement"]["loss"].to_pylist()
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    assert found.tables["replacement"]["failed"].to_pylist() == [True] * 3


def test_a_run_that_diverged_has_failed_for_all(make_plan: MakePlan) -> None:
    found = run(make_plan(measures=ASKED, training={"learning_rate": 1e30}))
    assert found.diverged
    expected = [
        {"k": k, "part": "validation", "score": None, "loss": None, "failed": True} for k in range(3)
    ]  # the embeddings are no numbers either
    assert found.tables["replacement"].to_pylist() == expected


# --- what it changes: nothing


def test_the_run_is_the_same_with_and_without(make_plan: MakePlan, tmp_path: Path) -> None:
    folders = [StudyFolder(tmp_path / name) for name in ("with", "without")]
    plans = [make_plan(measures=measures, methods=["component-clip"], seeds=[1]) for measures in (ASKED, {})]
    ours, theirs = (Study(plan, folder).run(InlineEngine()) for plan, folder in zip(plans, folders, strict=True))
    assert [run.id for run in ours] == [run.id for run in theirs]
    assert same_results(*folders, ours, theirs)
    assert all(folders[0].read_run(run.id, "replacement") is not None for run in ours)
    assert all(folders[1].read_run(run.id, "replacement") is None for run in theirs)


def test_what_was_finished_before_stays_as_it_is(make_plan: MakePlan, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    Study(make_plan(seeds=[1], methods=["full"]), folder).run(InlineEngine())
    runs = Study(make_plan(seeds=[1, 2], methods=["full"], measures=ASKED), folder).run(InlineEngine())
    assert [(run.spec.seed, run.attempts) for run in runs] == [(1, 1), (2, 1)]
    assert [folder.read_run(run.id, "replacement") is not None for run in runs] == [False, True]


# --- how it is asked for


def test_a_worker_measures_what_its_job_says(make_plan: MakePlan) -> None:
    for measures in ({}, ASKED):
        found = work(first(make_plan(measures=measures)))
        assert isinstance(found, RunResult)
        assert ("replacement" in found.tables) is bool(measures)


def test_a_model_without_layers_is_refused_before_anything_starts(
    make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "blocks", lambda _: ())
    assert first(make_plan()).measures == Measures()
    with pytest.raises(
        PlanError, match=r"measures\.layer_replacement was asked for, and no layers were found in .*small"
    ):
        first(make_plan(measures=ASKED))


# --- which weights are the pretrained ones


def test_the_weights_are_those_that_were_loaded_and_what_a_method_adds() -> None:
    model = _models.bert()
    loaded = layer_weights(model)
    layers = PretrainedLayers(model)
    with torch.no_grad():
        for parameter in model.parameters():  # as a method may, before training
            parameter.add_(1.0)
    added = model.bert.encoder.layer[1].output
    added.register_parameter("added", nn.Parameter(torch.full((2,), 3.0)))
    arguments = TrainingArguments(use_cpu=True, report_to=[])
    layers.on_train_begin(arguments, TrainerState(), TrainerControl(), model=model)
    with torch.no_grad():
        added.added.zero_()
    assert set(layers.weights) == {*loaded, "bert.encoder.layer.1.output.added"}
    assert all(torch.equal(layers.weights[name], tensor) for name, tensor in loaded.items())
    assert layers.weights["bert.encoder.layer.1.output.added"].tolist() == [3.0, 3.0]
