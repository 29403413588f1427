"""Two studies side by side: the same methods, on another day, another machine, by somebody else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evenkeel.report._judge import Judged, judge
from evenkeel.report._results import Cell, cells
from evenkeel.study import RunRecord, open_study

__all__ = ["BetweenStudies", "compare_studies"]


@dataclass(frozen=True, kw_only=True)
class BetweenStudies:
    """What two studies have in common, and what they do not.

    Attributes:
        judged: the second study's cells against those of the first, by task, model, recipe and method.
        differences: what was not the same, in sentences: data, models, versions, devices.
        only: by study, cells that the other one lacks.
    """

    judged: Sequence[Judged]
    differences: Sequence[str]
    only: tuple[Sequence[str], Sequence[str]]


def compare_studies(first: Path, second: Path) -> BetweenStudies:
    """Compare the runs that two studies share by name.

    Args:
        first: the folder of the one study.
        second: the folder of the other, which is judged against the first.

    Returns:
        The comparison; where nothing is shared, it has no judgements.

    Raises:
        StoreError: if a folder holds no study.
    """
    ours, theirs = _cells(first), _cells(second)
    both = [key for key in ours if key in theirs]
    pairs = [(_named(ours[key], "first"), _named(theirs[key], "second")) for key in both]
    differences = list(dict.fromkeys(text for key in both for text in _differences(ours[key], theirs[key])))
    only = tuple([_title(cell) for key, cell in of.items() if key not in both] for of in (ours, theirs))
    return BetweenStudies(judged=judge(pairs), differences=differences, only=(only[0], only[1]))


def _cells(path: Path) -> dict[tuple[str, ...], Cell]:
    plan, runs, _ = open_study(path)
    found = cells(plan, runs)
    return {
        (cell.task.split(" [")[0], cell.plain_model.split(" [")[0], _recipe(cell), cell.method): cell for cell in found
    }


def _recipe(cell: Cell) -> str:
    """Return the whole recipe: what differs within one study is not what differs between two."""
    spec = cell.runs[0].spec
    return str({**spec.training.model_dump(mode="json"), **spec.overrides})


def _named(cell: Cell, study: str) -> Cell:
    return replace(cell, method=f"{cell.method} ({study})")


def _title(cell: Cell) -> str:
    return f"{cell.task}, {cell.model}, {cell.method}"


def _differences(first: Cell, second: Cell) -> list[str]:
    one, other = first.runs[0].spec, second.runs[0].spec
    found = []
    if one.data_fingerprint != other.data_fingerprint:
        found.append(
            f"the data of {one.task} is not the same ({one.data_fingerprint[:8]} there, {other.data_fingerprint[:8]} "
            "here): scores are of other examples"
        )
    if one.model_fingerprint != other.model_fingerprint:
        found.append(
            f"the model {one.model} is not the same ({one.model_fingerprint[:8]} there, {other.model_fingerprint[:8]} "
            "here)"
        )
    for word, (before, after) in _made(first, second).items():
        found.append(f"{word} is {before} there, and {after} here")
    return found


def _made(first: Cell, second: Cell) -> dict[str, tuple[str, str]]:
    before, after = _provenance(first.finished), _provenance(second.finished)
    words = [word for word in {**before, **after} if word not in ("data", "model")]
    there = {word: (before.get(word, "unknown"), after.get(word, "unknown")) for word in words}
    return {word: values for word, values in there.items() if values[0] != values[1]}


def _provenance(runs: Sequence[RunRecord]) -> Mapping[str, str]:
    """Return what runs were made with, each word with all of its values."""
    values: dict[str, dict[str, None]] = {}
    for run in runs:
        made: dict[str, Any] = dict(run.outcome.get("provenance") or {})
        for word, value in {**made, **(made.pop("versions", None) or {})}.items():
            if word != "versions":
                values.setdefault(word, {})[str(value)] = None
    return {word: " or ".join(found) for word, found in values.items()}
