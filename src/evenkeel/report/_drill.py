"""What there is to see of each single run: its configuration, what it was made with, its curves, its error."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from evenkeel.report._figure_data import floats
from evenkeel.report._results import Cell
from evenkeel.study import RunRecord, StudyFolder, size

__all__ = ["drill"]

_ERROR = 4000  # characters of a traceback, its end


def drill(found: Sequence[Cell], folder: StudyFolder) -> str:
    """Collect every run's details.

    Args:
        found: the cells, whose runs come in this order.
        folder: where their tables are.

    Returns:
        JSON: ``runs``, and in ``texts`` lists of words and their texts, to which runs point: many share them.
    """
    texts: dict[str, int] = {}
    runs = [_run(cell, run, folder, texts) for cell in found for run in cell.runs]
    return json.dumps({"runs": runs, "texts": [json.loads(text) for text in texts]}, separators=(",", ":"))


def _run(cell: Cell, run: RunRecord, folder: StudyFolder, texts: dict[str, int]) -> dict[str, Any]:
    spec, outcome = run.spec, run.outcome

    def shared(pairs: list[tuple[str, str]]) -> int:
        return texts.setdefault(json.dumps(pairs), len(texts))

    recipe = {**spec.training.model_dump(mode="json"), **spec.overrides}
    seeds = {"seed": spec.seed, "head": spec.init_seed, "order": spec.order_seed, "split": spec.split_seed}
    made = {key: value for key, value in (outcome.get("provenance") or {}).items() if key != "versions"}
    versions = (outcome.get("provenance") or {}).get("versions") or {}
    return {
        "id": run.id,
        "name": f"{cell.task}, {cell.model}, {cell.method}, {spec.draw_in_words}",
        "said": [[word, _text(value)] for word, value in _said(run) if value is not None],
        "seeds": ", ".join(f"{word} {value}" for word, value in seeds.items() if value is not None),
        "recipe": shared([(word.replace("_", " "), _text(value)) for word, value in recipe.items()]),
        "made": shared([(word, _text(value)) for word, value in {**made, **versions}.items()]),
        "error": (run.error or "")[-_ERROR:],
        **_curves(run, folder),
    }


def _said(run: RunRecord) -> list[tuple[str, Any]]:
    outcome = run.outcome
    scores = (outcome.get("all_scores") or {}).items()
    every = [(f"{part} {name}", score) for part, found in scores for name, score in found.items()]
    return [
        ("status", run.status),
        ("attempts", run.attempts),
        *(every or [(part, score) for part, score in (outcome.get("scores") or {}).items()]),
        *((word.replace("_", " "), outcome.get(word)) for word in ("failed", "failed_by_majority", "constant")),
        *((f"health: {word.replace('_', ' ')}", value) for word, value in (outcome.get("health") or {}).items()),
        *((f"racing: {word.replace('_', ' ')}", value) for word, value in (outcome.get("racing") or {}).items()),
        ("steps", outcome.get("steps")),
        ("seconds", outcome.get("wall_seconds")),
        ("CPU seconds", outcome.get("cpu_seconds")),
        *((f"peak memory, {place}", size(taken)) for place, taken in (outcome.get("peak_memory") or {}).items()),
    ]  # fmt: skip


def _curves(run: RunRecord, folder: StudyFolder) -> dict[str, Any]:
    """Return loss, learning rate, total gradient norm and score by step, as far as they were recorded."""
    if not run.finished:
        return {}
    found: dict[str, Any] = {}
    log = _table(folder, run, "log")
    if log is not None:
        found["loss"] = _pairs(log["step"], log["loss"])
        if "learning_rate" in log.column_names:
            found["rate"] = _pairs(log["step"], log["learning_rate"])
    norms = _table(folder, run, "telemetry")
    if norms is not None:
        steps, place = np.unique(norms["step"].to_numpy(), return_inverse=True)
        values = np.nan_to_num(floats(norms, "norm"))
        with np.errstate(over="ignore"):
            totals = np.sqrt(np.bincount(place, weights=values**2))
        found["norm"] = _rounded(steps.tolist(), totals.tolist())
    course = _table(folder, run, "course")
    if course is not None:
        found["score"] = _pairs(course["step"], course["score"])
    return found


def _table(folder: StudyFolder, run: RunRecord, name: str) -> pa.Table | None:
    table = folder.read_run(run.id, name)
    return table if table is not None and table.num_rows else None


def _pairs(steps: pa.ChunkedArray, values: pa.ChunkedArray) -> list[list[Any]]:
    return _rounded(steps.to_pylist(), [np.nan if value is None else value for value in values.to_pylist()])


def _rounded(steps: Sequence[int], values: Sequence[float]) -> list[list[Any]]:
    return [list(steps), [float(f"{value:.4g}") if np.isfinite(value) else None for value in values]]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
