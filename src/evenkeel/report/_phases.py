"""Training in phases: how far each layer goes in each, and what the score is after each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.compute as pc

from evenkeel.report._component_maps import row_of
from evenkeel.report._figure_data import Floats, tables_of
from evenkeel.report._results import Cell
from evenkeel.report._style import COLOURS, blank, label
from evenkeel.study import StudyFolder

__all__ = ["PhaseDrift", "draw_phase_drift", "phase_drift"]

CHANGES = {
    "rms_change": "since before fine-tuning, root mean square",
    "phase_rms_change": "in this phase alone, root mean square",
    "cosine_distance": "since before fine-tuning, cosine distance",
    "phase_cosine_distance": "in this phase alone, cosine distance",
}
_NEEDED = {"phase", *CHANGES}


@dataclass(frozen=True, kw_only=True)
class PhaseDrift:
    """How far the weights of each row of a model are at the end of each phase; means over components and runs.

    Attributes:
        method: the method.
        change: the column, one of ``CHANGES``.
        rows: heights in the model, from the bottom up.
        phases: how many there are.
        values: log10 of the change, shape ``[rows, phases]``; NaN where a row was frozen.
        runs: how many runs were counted.
    """

    method: str
    change: str
    rows: tuple[str, ...]
    phases: int
    values: Floats
    runs: int


def phase_drift(cell: Cell, folder: StudyFolder, rows: Sequence[str]) -> list[PhaseDrift]:
    """Read the changes of a method that trains in phases.

    Args:
        cell: its runs.
        folder: where their tables are.
        rows: heights in the model, in order.

    Returns:
        One for each kind of change; none if no run has several phases.
    """
    if not _in_phases(cell, folder):
        return []
    tables = [table for _, table in tables_of(cell, folder, "telemetry") if set(table.column_names) >= _NEEDED]
    phases = max(_phases(table) for table in tables)
    found = []
    for change in CHANGES:
        values = [_at_ends(table, change, rows, phases) for table in tables]
        stacked = np.stack(values)
        counts = np.isfinite(stacked).sum(axis=0)
        with np.errstate(invalid="ignore"):
            means = np.where(counts > 0, np.nansum(stacked, axis=0) / counts, np.nan)
        found.append(
            PhaseDrift(
                method=cell.method, change=change, rows=tuple(rows), phases=phases, values=means, runs=len(tables)
            )
        )
    return found


def _in_phases(cell: Cell, folder: StudyFolder) -> bool:
    """Whether the method trains in phases, by the first of its runs that tells: reading all tables takes a while."""
    for run in cell.finished:
        alone = replace(cell, runs=(run,))
        for _, table in tables_of(alone, folder, "telemetry"):
            return set(table.column_names) >= _NEEDED and _phases(table) > 1
    return False


def _phases(table: pa.Table) -> int:
    return int(pc.max(table["phase"]).as_py() or 0) + 1


def _at_ends(table: pa.Table, change: str, rows: Sequence[str], phases: int) -> Floats:
    """Return log10 of the change at the last recorded step of each phase, averaged over the weights of a row."""
    frame = table.select(["step", "phase", "component", "layer", "kind", change]).to_pandas()
    frame = frame[frame["kind"] == "weight"]
    grid = np.full((len(rows), phases), np.nan)
    for phase, of_phase in frame.groupby("phase"):
        last = of_phase[of_phase["step"] == of_phase["step"].max()]
        layers = [None if layer != layer else int(layer) for layer in last["layer"]]  # NaN is none
        names = [row_of(str(path), layer) for path, layer in zip(last["component"], layers, strict=True)]
        for row, values in last.groupby(np.array(names, dtype=object)):
            changes = np.asarray(values[change], dtype=np.float64)
            changes = changes[np.isfinite(changes) & (changes > 0)]
            if changes.size and row in rows:
                grid[list(rows).index(str(row)), int(phase)] = float(np.log10(changes).mean())
    return grid


def draw_phase_drift(drift: PhaseDrift) -> go.Figure:
    """Draw the changes as a heat map: phases to the right, the model from the bottom up.

    Args:
        drift: the changes.

    Returns:
        The figure.
    """
    figure = blank(height=120 + 24 * len(drift.rows), xaxis={"title": {"text": "phase"}})
    figure.add_trace(
        go.Heatmap(
            x=[str(phase + 1) for phase in range(drift.phases)],
            y=[label(row) for row in drift.rows],
            z=[[None if np.isnan(value) else round(float(value), 3) for value in row] for row in drift.values],
            hovertemplate="%{y}, after phase %{x}: 10^%{z:.2f}<extra></extra>",
            colorscale=COLOURS,
            xgap=1,
            ygap=1,
            colorbar={"title": {"text": "log10"}, "thickness": 10, "outlinewidth": 0},
        )
    )
    figure.update_xaxes(showgrid=False, type="category")
    figure.update_yaxes(showgrid=False, type="category")
    return figure
