"""Where in a model something happens: layers x roles, over training, for failed and successful runs apart."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from evenkeel.measure import half_time
from evenkeel.partition import ROLES
from evenkeel.report._figure_data import Floats, floats, tables_of
from evenkeel.report._results import Cell
from evenkeel.study import StudyFolder

__all__ = ["BINS", "MEASURES", "ComponentMap", "Measure", "component_maps", "row_of"]

BINS = 10  # parts of training; more would be small differences and large pages
SMALLEST = 1e-12

Place = tuple[str, str]  # row, role
_Values = Callable[[Mapping[str, Floats]], Floats]  # columns of a table -> one value a row, NaN for none


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Something that is told of each component and recorded step.

    Attributes:
        name: what a reader calls it.
        unit: of its values.
        how: a sentence that says how to read it.
        columns: the columns of the telemetry that it is made from.
        values: makes one value of each row.
        kinds: which kinds of components count; None for all.
    """

    name: str
    unit: str
    how: str
    columns: tuple[str, ...]
    values: _Values
    kinds: tuple[str, ...] | None = ("weight",)


def _log(values: Floats) -> Floats:
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(values), np.log10(np.maximum(values, SMALLEST)), np.nan)


def _ratio(columns: Mapping[str, Floats]) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return _log(columns["update_norm"] / columns["weight_norm"])


def _below_one(values: Floats) -> Floats:
    return np.where(np.isfinite(values), values < 1, np.nan)


MEASURES: dict[str, Measure] = {
    "norm": Measure(
        name="gradient norm",
        unit="log10",
        how="The mean of log10 of the gradient norm before clipping; one step of 1 is a factor of 10. Where failed "
        "runs are darker than successful ones, gradients vanished.",
        columns=("norm",),
        values=lambda columns: _log(columns["norm"]),
    ),
    "clipped": Measure(
        name="share of steps clipped",
        unit="share",
        how="In how many of the recorded steps the gradient was made smaller: 0 never, 1 always.",
        columns=("coefficient",),
        values=lambda columns: _below_one(columns["coefficient"]),
        kinds=None,
    ),
    "limited": Measure(
        name="share of steps limited",
        unit="share",
        how="In how many of the recorded steps the update was made smaller, because it was large beside the weights: "
        "0 never, 1 always.",
        columns=("update_coefficient",),
        values=lambda columns: _below_one(columns["update_coefficient"]),
        kinds=None,
    ),
    "ratio": Measure(
        name="update / weight",
        unit="log10",
        how="The mean of log10 of (norm of a step's update / norm of the weights); -3 is a thousandth.",
        columns=("update_norm", "weight_norm"),
        values=_ratio,
    ),
    "drift": Measure(
        name="drift from the pretrained weights",
        unit="log10",
        how="The mean of log10 of the root mean square change of a weight since before fine-tuning.",
        columns=("rms_change",),
        values=lambda columns: _log(columns["rms_change"]),
    ),
    "turned": Measure(
        name="cosine distance from the pretrained weights",
        unit="log10",
        how="The mean of log10 of 1 - cos of the angle between the weights now and before fine-tuning.",
        columns=("cosine_distance",),
        values=lambda columns: _log(columns["cosine_distance"]),
    ),
}
HALF_TIME = Measure(
    name="half time",
    unit="share",
    how="The share of training after which a component has covered half of the distance that it covers in all. "
    "Components that lie far apart here race: the paper says that clipping brings them together.",
    columns=("rms_change",),
    values=lambda columns: columns["rms_change"],
)


@dataclass(frozen=True, kw_only=True)
class ComponentMap:
    """One measure of one method, by part of training, row and role.

    Attributes:
        method: the method.
        measure: the measure's key in ``MEASURES``, or ``half_time``.
        rows: heights in the model, from the bottom up.
        roles: roles of components.
        failed: mean over the failed runs, shape ``[1 + BINS, rows, roles]``: the whole of training, then its parts;
            ``[1, rows, roles]`` where there are no parts. NaN where there is nothing.
        successful: the same of the runs that did not fail.
        n_failed: failed runs that were counted.
        n_successful: the others.
        unrecorded: finished runs that left no such record.
    """

    method: str
    measure: str
    rows: tuple[str, ...]
    roles: tuple[str, ...]
    failed: Floats
    successful: Floats
    n_failed: int
    n_successful: int
    unrecorded: int

    @property
    def tells(self) -> bool:
        """Whether there is a value anywhere: nothing limits updates in most studies, for instance."""
        return bool(np.isfinite(self.failed).any() or np.isfinite(self.successful).any())


def component_maps(members: Sequence[Cell], folder: StudyFolder) -> list[list[ComponentMap]]:
    """Read what happened where, for the finished runs of several methods.

    A place's value is the mean over its components and the recorded steps of a part of training, then over runs. Steps
    in which a component was frozen do not count. Biases are left out but of the shares clipped and limited: a key's
    bias has no gradient but rounding errors.

    Args:
        members: the runs of each method on one task and model.
        folder: where their tables are.

    Returns:
        For each method its maps, of those measures that any run recorded; all have the same rows and roles.
    """
    read = [
        [(bool(run.outcome["failed"]), _measured(table)) for run, table in tables_of(cell, folder, "telemetry")]
        for cell in members
    ]
    places = {
        place for of_cell in read for _, found in of_cell for of_measure in found.values() for place in of_measure
    }
    known = {role: i for i, role in enumerate(ROLES)}
    rows = tuple(sorted({row for row, _ in places}, key=_height))
    roles = tuple(sorted({role for _, role in places}, key=lambda role: (known.get(role, len(known)), role)))
    there = [key for key in (*MEASURES, "half_time") if any(found.get(key) for of_cell in read for _, found in of_cell)]
    return [
        [_map(cell, of_cell, key, rows, roles) for key in there] for cell, of_cell in zip(members, read, strict=True)
    ]


_Found = Mapping[str, Mapping[Place, Floats]]  # measure -> place -> parts of training


def _map(
    cell: Cell, read: Sequence[tuple[bool, _Found]], key: str, rows: tuple[str, ...], roles: tuple[str, ...]
) -> ComponentMap:
    having = [(failed, found[key]) for failed, found in read if found.get(key)]
    parts = 1 if key == "half_time" else 1 + BINS
    return ComponentMap(
        method=cell.method,
        measure=key,
        rows=rows,
        roles=roles,
        failed=_grid(rows, roles, parts, [found for failed, found in having if failed]),
        successful=_grid(rows, roles, parts, [found for failed, found in having if not failed]),
        n_failed=sum(failed for failed, _ in having),
        n_successful=sum(not failed for failed, _ in having),
        unrecorded=len(cell.finished) - len(having),
    )


def _grid(rows: Sequence[str], roles: Sequence[str], parts: int, runs: Sequence[Mapping[Place, Floats]]) -> Floats:
    """Average each place over the runs that have it."""
    grid = np.full((parts, len(rows), len(roles)), np.nan)
    for (i, row), (k, role) in itertools.product(enumerate(rows), enumerate(roles)):
        values = np.array([found[row, role] for found in runs if (row, role) in found]).reshape(-1, parts)
        counts = np.isfinite(values).sum(axis=0)
        with np.errstate(invalid="ignore"):
            grid[:, i, k] = np.where(counts > 0, np.nansum(values, axis=0) / counts, np.nan)
    return grid


def _measured(table: pa.Table) -> _Found:
    """Average every measure of one run over the components and steps of each place, by part of training."""
    coded = table["component"].combine_chunks().dictionary_encode()
    paths, codes = coded.dictionary.to_pylist(), coded.indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    about = table.select(["layer", "role", "kind"]).take(pa.array(first)).to_pylist()
    places = [(row_of(path, part["layer"]), part["role"] or "other") for path, part in zip(paths, about, strict=True)]
    kinds = [part["kind"] for part in about]
    steps = table["step"].to_numpy().astype(np.int64)
    part = np.minimum(BINS - 1, (steps - steps.min()) * BINS // max(1, np.ptp(steps)))
    found: dict[str, Mapping[Place, Floats]] = {}
    for key, measure in MEASURES.items():
        if set(measure.columns) <= set(table.column_names):
            values = measure.values({name: floats(table, name) for name in measure.columns})
            counted = np.array([measure.kinds is None or kind in measure.kinds for kind in kinds])[codes]
            found[key] = _by_place(np.where(counted, values, np.nan), codes, part, places)
    if "rms_change" in table.column_names:
        found["half_time"] = _half_times(floats(table, "rms_change"), codes, steps, places, kinds)
    return found


def _by_place(values: Floats, codes: Floats, part: Floats, places: Sequence[Place]) -> dict[Place, Floats]:
    numbered = {place: i for i, place in enumerate(dict.fromkeys(places))}
    at = np.array([numbered[place] for place in places])[codes] * BINS + part
    kept = np.isfinite(values)
    size = len(numbered) * BINS
    sums = np.bincount(at[kept], weights=values[kept], minlength=size).reshape(-1, BINS)
    counts = np.bincount(at[kept], minlength=size).reshape(-1, BINS)
    whole = np.concatenate([sums.sum(axis=1, keepdims=True), sums], axis=1)
    n = np.concatenate([counts.sum(axis=1, keepdims=True), counts], axis=1)
    with np.errstate(invalid="ignore"):
        means = np.where(n > 0, whole / n, np.nan)
    return {place: means[i] for place, i in numbered.items() if n[i, 0]}


def _half_times(
    changes: Floats, codes: Floats, steps: Floats, places: Sequence[Place], kinds: Sequence[str]
) -> dict[Place, Floats]:
    """Average the half times of the weights at each place; a component that never moved has none."""
    order = np.lexsort((steps, codes))
    ends = np.searchsorted(codes[order], np.arange(len(places) + 1))
    found: dict[Place, list[float]] = {}
    for code, (place, kind) in enumerate(zip(places, kinds, strict=True)):
        rows = order[ends[code] : ends[code + 1]]
        rows = rows[np.isfinite(changes[rows])]
        if kind == "weight" and len(rows):
            found.setdefault(place, []).append(half_time(steps[rows] / steps.max(), changes[rows]))
    means = {place: np.array([value for value in values if np.isfinite(value)]) for place, values in found.items()}
    return {place: np.array([values.mean()]) for place, values in means.items() if values.size}


def row_of(path: str, layer: int | None) -> str:
    """Name the height of a component in the model, such as ``layer 3`` or ``decoder layer 0``.

    Args:
        path: the component's path.
        layer: its layer; None outside of layers.

    Returns:
        The name.
    """
    stack, _, rest = path.partition(".")
    prefix = f"{stack} " if stack in ("encoder", "decoder") else ""
    if layer is not None:
        return f"{prefix}layer {layer}"
    return f"{prefix}embeddings" if (rest if prefix else path).startswith("embedding.") else f"{prefix}head"


def _height(row: str) -> tuple[int, int, int]:
    """Order rows from the embeddings up: shared ones, encoder, decoder, head; in each, embeddings, layers, the rest."""
    words = row.split()
    stack = {"encoder": 1, "decoder": 2}.get(words[0], 3 if row == "head" else 0)
    if words[-1].isdigit():
        return stack, 1, int(words[-1])
    return stack, 0 if words[-1] == "embeddings" else 2, 0
