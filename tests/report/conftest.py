"""Studies made by hand: a store with the outcomes and tables that a test names, without any training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from evenkeel.report._results import Cell, cells
from evenkeel.study import Plan, RunRecord, RunSpec, Store, StudyFolder

Fate = float | str  # a score, or a status other than done
MakeRuns = Callable[..., tuple[Plan, list[RunRecord]]]
MakeStudy = Callable[..., Path]

MAJORITY = 0.55
LEARNT = 0.58  # scores below it are failed runs
UNFINISHED = ("queued", "running", "error", "lost")
ERROR = "Traceback (most recent call last):\n  somewhere\nValueError: <b>no such thing</b>"
ROLES = ("query", "key", "value", "attention_output", "ffn_in", "ffn_out", "norm")


def outcome(fate: Fate) -> dict[str, Any]:
    score = None if fate == "diverged" else float(fate)
    versions = {"evenkeel": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"}
    return {
        "metric": "accuracy",
        "scores": {"validation": score},
        "accuracy": {"validation": score},
        "majority": {"validation": MAJORITY},
        "constant": score == MAJORITY,
        "failed": score is None or score < LEARNT,
        "failed_by_majority": score is None or score <= MAJORITY,
        "steps": 300,
        "wall_seconds": 12.5,
        "cpu_seconds": 12.0,
        "provenance": {"versions": versions, "python": "3.11.7", "device": "cpu (x86_64)", "threads": 1},
    }


def log(fate: Fate, rng: np.random.Generator) -> pa.Table:
    """A loss that falls for a good run, stays for a failed one, and ends in NaN for a diverged one."""
    steps = np.arange(5, 301, 5)[: 20 if fate == "diverged" else None]
    floor = (
        0.69
        if fate == "diverged" or float(fate) < LEARNT
        else 0.69 - 0.5 * (float(fate) - 0.5) * (1 - np.exp(-steps / 80)) * 4
    )
    losses = floor + rng.normal(0, 0.015, steps.size)
    if fate == "diverged":
        losses[-1] = np.nan
    return pa.table(
        {"step": pa.array(steps, pa.int32()), "epoch": steps / 100, "loss": losses, "learning_rate": steps * 1e-5}
    )


SCHEMA = pa.schema(
    [
        ("step", pa.int32()), ("phase", pa.int16()), ("component", pa.string()), ("layer", pa.int16()),
        ("role", pa.string()), ("kind", pa.string()), ("size", pa.int64()),
        *((name, pa.float32()) for name in (
            "norm", "coefficient", "weight_norm", "update_norm", "rms_change", "cosine_distance", "phase_rms_change",
            "phase_cosine_distance",
        )),
    ]
)  # fmt: skip


def telemetry(fate: Fate, rng: np.random.Generator, *, layers: int = 4, phases: int = 1) -> pa.Table:
    """A small model's; in a failed run the lower layers hardly get a gradient. Biases are a thousandth."""
    failed = fate == "diverged" or float(fate) < LEARNT
    parts: list[tuple[str, int | None, str]] = [("embedding.word", None, "embedding"), ("embedding.norm", None, "norm")]
    parts += [(f"layer.{layer}.{role}", layer, role) for layer in range(layers) for role in ROLES]
    parts += [("pooler", None, "pooler"), ("head", None, "head")]
    rows = []
    for number, step in enumerate(range(1, 301, 50)):
        for path, layer, role in parts:
            height = -1 if path.startswith("embedding") else layers if layer is None else layer
            level = -2 + (0.8 * (height - layers) if failed else 0.1 * height)
            for kind, factor in (("weight", 1.0), ("bias", 1e-3)):
                norm = factor * 10 ** (level + rng.normal(0, 0.1))
                covered = 1 - np.exp(-step / (30 + 20 * max(0, height)))
                rows.append(
                    {
                        "step": step, "phase": number * phases // 6, "component": f"{path}.{kind}", "layer": layer,
                        "role": role, "kind": kind, "size": 64, "norm": norm, "coefficient": min(1.0, 0.02 / norm),
                        "weight_norm": 1.0, "update_norm": 1e-3, "rms_change": 1e-3 * covered,
                        "cosine_distance": 1e-6 * covered, "phase_rms_change": 5e-4 * covered,
                        "phase_cosine_distance": 5e-7 * covered,
                    }
                )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def course(fate: Fate, rng: np.random.Generator) -> pa.Table:
    """Scores that rise to that of the run; two phases."""
    steps = np.arange(30, 301, 30)
    end = 0.5 if fate == "diverged" else float(fate)
    scores = [None if fate == "diverged" and step > 200 else 0.5 + (end - 0.5) * step / 300 for step in steps]
    phases = pa.array([int(step > 150) for step in steps], pa.int16())
    return pa.table({"step": pa.array(steps, pa.int32()), "epoch": steps / 100, "phase": phases, "score": scores})


def predictions(fate: Fate, rng: np.random.Generator) -> pa.Table:
    labels = np.arange(40) % 2
    wrong = rng.random(40) > (0.5 if fate == "diverged" else float(fate))
    return pa.table(
        {
            "part": ["validation"] * 40,
            "example": pa.array(range(40), pa.int32()),
            "label": pa.array(labels, pa.int32()),
            "prediction": pa.array(np.where(wrong, 1 - labels, labels), pa.int32()),
        }
    )


def replacement(fate: Fate, rng: np.random.Generator) -> pa.Table:
    scores = [0.5 if fate == "diverged" else float(fate)] + [0.55] * 4
    return pa.table(
        {"k": pa.array(range(5), pa.int32()), "part": ["validation"] * 5, "score": scores, "loss": [0.6] * 5}
    )


MAKERS = {
    "log": log,
    "telemetry": telemetry,
    "course": course,
    "predictions": predictions,
    "replacement": replacement,
}


def plan_and_specs(
    fates: dict[str, Sequence[Fate]], *, tasks: Sequence[str] = ("rte",), models: Sequence[str] = ("tiny",)
) -> tuple[Plan, list[RunSpec]]:
    plan = Plan(
        tasks=[{"name": task} for task in tasks],
        models=list(models),
        methods=list(fates),
        seeds=max(map(len, fates.values())),
    )
    specs = [
        RunSpec(
            task=run.task.name,
            metric="accuracy",
            data_fingerprint="d" * 16,
            model=run.model,
            model_fingerprint="m" * 16,
            method=run.method,
            seed=run.seed,
            training=run.training,
        )
        for run in plan.grid()
        if run.seed <= len(fates[run.method])
    ]
    return plan, specs


@pytest.fixture(scope="session")
def make_runs() -> MakeRuns:
    """Make a plan and its runs: ``fates`` gives for each method what became of seeds 1, 2, ..."""

    def make(fates: dict[str, Sequence[Fate]], **names: Sequence[str]) -> tuple[Plan, list[RunRecord]]:
        plan, specs = plan_and_specs(fates, **names)
        runs = []
        for spec in specs:
            fate = fates[spec.method][spec.seed - 1]
            status = fate if fate in UNFINISHED or fate == "diverged" else "done"
            runs.append(
                RunRecord(
                    id=spec.id,
                    spec=spec,
                    status=status,
                    attempts=1,
                    outcome={} if status in UNFINISHED else outcome(fate),
                    error=ERROR if status == "error" else None,
                )
            )
        return plan, runs

    return make


@pytest.fixture
def make_cell(make_runs: MakeRuns, tmp_path: Path) -> Callable[..., tuple[Cell, StudyFolder]]:
    """Make a cell whose runs left the tables given: one, or None, for each fate."""

    def make(fates: Sequence[Fate], **tables: Sequence[pa.Table | None]) -> tuple[Cell, StudyFolder]:
        plan, runs = make_runs({"full": fates})
        folder = StudyFolder(tmp_path)
        for name, of_runs in tables.items():
            for run, table in zip(runs, of_runs, strict=True):
                if table is not None:
                    folder.write_run(run.id, {name: table})
        return cells(plan, runs)[0], folder

    return make


@pytest.fixture
def make_study(tmp_path: Path, make_runs: MakeRuns) -> MakeStudy:
    """Make a study's folder, with the tables that are named."""

    def make(
        fates: dict[str, Sequence[Fate]], *, tables: Sequence[str] = ("log", "telemetry"), **names: Sequence[str]
    ) -> Path:
        plan, runs = make_runs(fates, **names)
        folder, rng = StudyFolder(tmp_path / "study"), np.random.default_rng(0)
        folder.path.mkdir()
        with closing(Store(folder.store)) as store:
            store.save_plan(plan, [run.spec for run in runs])
            for run in runs:
                store.finish(run.id, run.status, outcome=run.outcome or None, error=run.error)
                if run.finished:
                    fate = fates[run.spec.method][run.spec.seed - 1]
                    folder.write_run(run.id, {name: MAKERS[name](fate, rng) for name in tables})
        return folder.path

    return make
