"""The values behind the figures, for tests to read and for ``_figures`` to draw."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evenkeel.report._results import Cell
from evenkeel.study import RunRecord, StudyFolder

__all__ = ["Floats", "LossCurves", "Strip", "floats", "loss_curves", "strip", "summary", "tables_of", "value_range"]

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
        return summary(self.losses[~np.asarray(self.failed, dtype=bool)])


def floats(table: pa.Table, name: str) -> Floats:
    """Return a column of numbers as floats, NaN where there is none."""
    return np.asarray(table[name].to_numpy(zero_copy_only=False), dtype=np.float64)


def summary(curves: Floats) -> tuple[Floats, Floats, Floats]:
    """Sum up curves.

    Args:
        curves: shape ``[R, S]``, NaN where a run has no value.

    Returns:
        Median, lowest and highest value, shape ``[S]`` each; NaN where none has a value.
    """
    low, middle, high = np.full((3, curves.shape[1]), np.nan)
    there = np.isfinite(curves).any(axis=0)
    if there.any():
        low[there], middle[there], high[there] = np.nanquantile(curves[:, there], [0, 0.5, 1], axis=0)
    return middle, low, high


def value_range(arrays: Iterable[Floats]) -> tuple[float, float] | None:
    """Return the lowest and the highest value of all arrays, or None where there are none."""
    values = np.concatenate([np.empty(0), *(array.ravel() for array in arrays)])
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if values.size else None


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
    logs = tables_of(cell, folder, "log")
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


def tables_of(cell: Cell, folder: StudyFolder, name: str) -> list[tuple[RunRecord, pa.Table]]:
    """Read a table of each finished run that left one with anything in it; telemetry that is cut off counts as missing.

    Args:
        cell: the runs.
        folder: where their tables are.
        name: the table's name.

    Returns:
        The runs and their tables.
    """
    found = [(run, folder.read_run(run.id, name)) for run in cell.finished]
    return [(run, table) for run, table in found if table is not None and table.num_rows]
