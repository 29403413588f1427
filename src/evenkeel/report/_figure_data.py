"""The values behind the figures, for tests to read and for ``_figures`` to draw."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evenkeel.partition import ROLES
from evenkeel.report._results import Cell
from evenkeel.study import RunRecord, StudyFolder

__all__ = ["LossCurves", "NormMap", "Strip", "loss_curves", "loss_range", "norm_maps", "strip"]

SMALLEST_NORM = 1e-12
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Strip:
    """The scores of one method.

    Attributes:
        method: the method.
        seeds: seeds of the runs with a score; words, where several are varied apart.
        scores: their validation scores.
        failed: whether they are no better than chance.
        diverged: seeds of the diverged runs, which have no score.
    """

    method: str
    seeds: tuple[int | str, ...]
    scores: tuple[float, ...]
    failed: tuple[bool, ...]
    diverged: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class LossCurves:
    """The training losses of one method, ``R`` runs at ``S`` steps.

    Attributes:
        method: the method.
        steps: optimizer steps at which any run logged its loss, shape ``[S]``.
        seeds: seeds of the runs that left a log.
        failed: whether they failed, diverged ones among them.
        losses: loss of each run, shape ``[R, S]``; NaN where it logged none or none that is a number.
        unlogged: how many finished runs left no log.
    """

    method: str
    steps: tuple[int, ...]
    seeds: tuple[int | str, ...]
    failed: tuple[bool, ...]
    losses: Floats
    unlogged: int

    def summary(self) -> tuple[Floats, Floats, Floats]:
        """Return median, lowest and highest loss of the runs that did not fail, shape ``[S]`` each; NaN where none."""
        kept = self.losses[~np.asarray(self.failed, dtype=bool)]
        low, middle, high = np.full((3, len(self.steps)), np.nan)
        logged = np.isfinite(kept).any(axis=0)
        if logged.any():
            low[logged], middle[logged], high[logged] = np.nanquantile(kept[:, logged], [0, 0.5, 1], axis=0)
        return middle, low, high


@dataclass(frozen=True, kw_only=True)
class NormMap:
    """Mean over training of the log10 gradient norm of weights, before clipping, for one method.

    Attributes:
        method: the method.
        rows: places in the model, from the embeddings up to the head, ``L`` of them.
        roles: roles of the components, ``K`` of them.
        failed: mean over the failed runs, shape ``[L, K]``; NaN where there is no such component.
        successful: the same over the other runs.
        n_failed: the failed runs that recorded norms.
        n_successful: the others.
        unrecorded: how many finished runs recorded no norms.
    """

    method: str
    rows: tuple[str, ...]
    roles: tuple[str, ...]
    failed: Floats
    successful: Floats
    n_failed: int
    n_successful: int
    unrecorded: int


def strip(cell: Cell) -> Strip:
    """Collect the scores of a cell."""
    return Strip(
        method=cell.method,
        seeds=tuple(run.spec.draw for run in cell.scored),
        scores=tuple(cell.scores),
        failed=tuple(bool(run.outcome["failed"]) for run in cell.scored),
        diverged=tuple(run.spec.draw for run in cell.finished if run.status == "diverged"),
    )


def loss_curves(cell: Cell, folder: StudyFolder) -> LossCurves:
    """Read the losses of a cell's finished runs.

    Args:
        cell: the runs.
        folder: where their tables are.

    Returns:
        The losses on a common axis of steps.
    """
    logs = _tables(cell, folder, "log")
    steps = sorted({step for _, log in logs for step in log["step"].to_pylist()})
    losses = np.full((len(logs), len(steps)), np.nan)
    for row, (_, log) in zip(losses, logs, strict=True):
        values = np.asarray(log["loss"].to_numpy(), dtype=np.float64)
        row[np.searchsorted(steps, log["step"].to_numpy())] = np.where(np.isfinite(values), values, np.nan)
    return LossCurves(
        method=cell.method,
        steps=tuple(steps),
        seeds=tuple(run.spec.draw for run, _ in logs),
        failed=tuple(bool(run.outcome["failed"]) for run, _ in logs),
        losses=losses,
        unlogged=len(cell.finished) - len(logs),
    )


def norm_maps(members: Sequence[Cell], folder: StudyFolder) -> list[NormMap]:
    """Read the gradient norms of the finished runs of several methods.

    A place's value is the mean over components, recorded steps and then runs, of log10 norm; steps in which a component
    was frozen have no norm and do not count. Biases are left out: a key's bias has no gradient but rounding errors.

    Args:
        members: the runs of each method on one task and model.
        folder: where their tables are.

    Returns:
        For each method the means, for failed and for successful runs apart; all have the same rows and roles.
    """
    tables = [_tables(cell, folder, "norms") for cell in members]
    maps = [[(bool(run.outcome["failed"]), _means(table)) for run, table in of_cell] for of_cell in tables]
    places = {place for of_cell in maps for _, means in of_cell for place in means}
    known = {role: i for i, role in enumerate(ROLES)}
    rows = tuple(sorted({row for row, _ in places}, key=_height))
    roles = tuple(sorted({role for _, role in places}, key=lambda role: (known.get(role, len(known)), role)))
    return [
        NormMap(
            method=cell.method,
            rows=rows,
            roles=roles,
            failed=_grid(rows, roles, [means for failed, means in of_cell if failed]),
            successful=_grid(rows, roles, [means for failed, means in of_cell if not failed]),
            n_failed=sum(failed for failed, _ in of_cell),
            n_successful=sum(not failed for failed, _ in of_cell),
            unrecorded=len(cell.finished) - len(of_cell),
        )
        for cell, of_cell in zip(members, maps, strict=True)
    ]


def _grid(rows: Sequence[str], roles: Sequence[str], runs: Sequence[Mapping[tuple[str, str], float]]) -> Floats:
    """Average each place over the runs that have it."""
    grid = np.full((len(rows), len(roles)), np.nan)
    for (i, row), (k, role) in itertools.product(enumerate(rows), enumerate(roles)):
        values = [means[row, role] for means in runs if (row, role) in means]
        if values:
            grid[i, k] = np.mean(values)
    return grid


def _tables(cell: Cell, folder: StudyFolder, name: str) -> list[tuple[RunRecord, pa.Table]]:
    """Read a table of each finished run that left one with anything in it."""
    found = [(run, folder.read_run(run.id, name)) for run in cell.finished]
    return [(run, table) for run, table in found if table is not None and table.num_rows]


def _means(table: pa.Table) -> dict[tuple[str, str], float]:
    """Average log10 norm over the recorded steps and components of each place (row, role)."""
    coded = table["component"].combine_chunks().dictionary_encode()
    paths, codes = coded.dictionary.to_pylist(), coded.indices.to_numpy()
    norms = np.asarray(table["norm"].to_numpy(), dtype=np.float64)
    _, first = np.unique(codes, return_index=True)
    about = table.select(["layer", "role", "kind"]).take(pa.array(first)).to_pylist()
    kept = np.isfinite(norms) & np.array([part["kind"] != "bias" for part in about])[codes]
    logs = np.log10(np.maximum(norms[kept], SMALLEST_NORM))
    sums = np.bincount(codes[kept], weights=logs, minlength=len(paths))
    counts = np.bincount(codes[kept], minlength=len(paths))
    places: dict[tuple[str, str], list[int]] = {}
    for i, (path, part) in enumerate(zip(paths, about, strict=True)):
        if counts[i]:
            places.setdefault((_row(path, part["layer"]), part["role"] or "other"), []).append(i)
    return {place: float(sums[members].sum() / counts[members].sum()) for place, members in places.items()}


def _row(path: str, layer: int | None) -> str:
    """Name the height of a component in the model, such as ``layer 3`` or ``decoder layer 0``."""
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


def loss_range(curves: Sequence[LossCurves]) -> tuple[float, float] | None:
    """Return the range that the losses of several methods share, or None where there are none."""
    values = np.concatenate([np.empty(0), *(curve.losses.ravel() for curve in curves)])
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if values.size else None
