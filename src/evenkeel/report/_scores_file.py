"""Scores that people bring from elsewhere, as if a study had made them."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evenkeel.errors import DataError, unknown_name
from evenkeel.study import Plan, RunRecord, RunSpec, Training

__all__ = ["read_scores"]

_NEEDED = ("method", "score")
_KNOWN = (*_NEEDED, "seed", "task", "model", "metric", "failed", "majority", "seconds")
_TRUE, _FALSE = ("1", "true", "yes"), ("0", "false", "no", "")
_NO_SCORE = ("", "nan", "inf", "-inf", "diverged")


def read_scores(path: Path) -> tuple[Plan, list[RunRecord], list[str]]:
    """Read a table of scores: a row for each run.

    Args:
        path: a CSV file with a header. Columns: ``method``, ``score`` (empty or nan where a run diverged), and as far
            as they are there ``seed``, ``task``, ``model``, ``metric``, ``failed`` (1 or 0), ``majority`` (the score of
            always guessing the commonest label), ``seconds``.

    Returns:
        A plan and runs that tables, verdicts and the page are made of, and notes on what the file does not tell.

    Raises:
        DataError: if the file cannot be read, a column is missing or unknown, or a value is none.
    """
    rows = _rows(path)
    notes = [] if "seed" in rows[0] else ["the file has no column seed, so runs are not compared in pairs"]
    if "failed" not in rows[0]:
        notes.append(
            "the file has no column failed: a run counts as failed if it has no score"
            + (" or is not above the majority" if "majority" in rows[0] else "")
        )
    runs, counted = [], dict[tuple[str, str, str], int]()
    for number, row in enumerate(rows, start=2):
        place = row.get("task") or path.stem, row.get("model") or "", row["method"]
        counted[place] = counted.get(place, 0) + 1
        # Without seeds no two methods share one.
        default = counted[place] + 1_000_000 * list(counted).index(place)
        seed = _seed(row["seed"], path, number) if "seed" in row else default
        runs.append(_record(row, place, seed, path, number))
    twice = {run.id for run in runs}
    if len(twice) < len(runs):
        raise DataError(f"'{path}' has a task, model, method and seed twice; a run has one row")
    plan = Plan(
        tasks=[{"name": name} for name in dict.fromkeys(run.spec.task for run in runs)],
        models=tuple(dict.fromkeys(run.spec.model for run in runs)),
        methods=tuple(dict.fromkeys(run.spec.method for run in runs)),
        seeds=tuple(dict.fromkeys(run.spec.seed for run in runs)),
    )
    return plan, runs, notes


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, skipinitialspace=True)
            columns = [str(name).strip() for name in table.fieldnames or ()]
            rows = [{str(key).strip(): (value or "").strip() for key, value in row.items()} for row in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"'{path}' cannot be read as CSV ({error}); give a table with a header, in UTF-8") from error
    missing = [name for name in _NEEDED if name not in columns]
    if missing:
        raise DataError(f"'{path}' has the columns {', '.join(columns) or 'none'}, and lacks {', '.join(missing)}")
    strange = next((name for name in columns if name not in _KNOWN), None)
    if strange is not None:
        raise DataError(f"'{path}': {unknown_name('column', strange, _KNOWN)}")
    if not rows:
        raise DataError(f"'{path}' has a header and no rows; give one for each run")
    return rows


def _record(row: Mapping[str, str], place: tuple[str, str, str], seed: int, path: Path, number: int) -> RunRecord:
    task, model, method = place
    if not method:
        raise DataError(f"'{path}', line {number}: the method is empty")
    score = None if row["score"].lower() in _NO_SCORE else _number(row["score"], "score", path, number)
    majority = _number(row["majority"], "majority", path, number) if row.get("majority") else math.nan
    below = score is None or (math.isfinite(majority) and score <= majority)
    failed = _truth(row["failed"], path, number) or score is None if "failed" in row else below
    metric = row.get("metric") or "score"
    spec = RunSpec(
        task=task, metric=metric, data_fingerprint="", model=model, model_fingerprint="", method=method, seed=seed,
        training=Training(),
    )  # fmt: skip
    outcome: dict[str, Any] = {
        "metric": metric,
        "scores": {"validation": score},
        "majority": {"validation": majority},
        "failed": failed,
        "failed_by_majority": below,
        "constant": False,
        "wall_seconds": _number(row["seconds"], "seconds", path, number) if row.get("seconds") else math.nan,
    }
    status = "diverged" if score is None else "failed" if failed else "done"
    return RunRecord(id=spec.id, spec=spec, status=status, attempts=1, outcome=outcome, error=None)  # type: ignore[arg-type]


def _seed(text: str, path: Path, number: int) -> int:
    try:
        seed = int(text)
    except ValueError:
        seed = -1
    if not 0 <= seed < 2**32:
        raise DataError(f"'{path}', line {number}: the seed is {text!r}; seeds are whole numbers from 0 on")
    return seed


def _number(text: str, name: str, path: Path, number: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"'{path}', line {number}: {name} is {text!r}, and no number; write 0.5, with a point")
    return value


def _truth(text: str, path: Path, number: int) -> bool:
    if text.lower() not in (*_TRUE, *_FALSE):
        raise DataError(f"'{path}', line {number}: failed is {text!r}; write 1 or 0")
    return text.lower() in _TRUE
