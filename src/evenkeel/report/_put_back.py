"""Layer replacement: the score with pretrained weights put back from the top down."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from evenkeel.report._figure_data import Floats, summary, tables_of
from evenkeel.report._results import Cell
from evenkeel.report._style import BAD, BAND, GOOD, add_band, blank, label, plain
from evenkeel.study import StudyFolder

__all__ = ["draw_put_back", "put_back"]


def put_back(cell: Cell, folder: StudyFolder) -> tuple[Floats, tuple[bool, ...]]:
    """Read the scores of a cell's runs with k layers put back.

    Args:
        cell: the runs.
        folder: where their tables are.

    Returns:
        Validation scores, shape ``[runs, 1 + layers]``, NaN where there is none; and whether each run failed.
    """
    tables = tables_of(cell, folder, "replacement")
    most = max((int(max(table["k"].to_pylist())) for _, table in tables), default=-1)
    scores = np.full((len(tables), most + 1), np.nan)
    for row, (_, table) in zip(scores, tables, strict=True):
        for entry in table.to_pylist():
            if entry["part"] == "validation" and entry["score"] is not None:
                row[entry["k"]] = entry["score"]
    return scores, tuple(bool(run.outcome["failed"]) for run, _ in tables)


def draw_put_back(scores: Floats, failed: Sequence[bool], *, metric: str) -> go.Figure:
    """Draw failed and successful runs: median as a line, range as a band.

    Args:
        scores: shape ``[runs, 1 + layers]``.
        failed: whether each run failed.
        metric: the task's metric.

    Returns:
        The figure.
    """
    figure = blank(
        height=260,
        xaxis={"title": {"text": "top layers put back"}, "dtick": 1},
        yaxis={"title": {"text": label(metric)}},
    )
    bad = np.asarray(failed, dtype=bool)
    for chosen, colour, band, dash, name in (
        (~bad, GOOD, BAND, "solid", "successful"),
        (bad, BAD, "rgba(213, 94, 0, 0.18)", "dot", "failed"),
    ):
        kept = scores[chosen]
        if not len(kept) or not np.isfinite(kept).any():
            continue
        median, low, high = summary(kept)
        layers = list(range(scores.shape[1]))
        add_band(figure, layers, low, high, colour=band, name=f"range of {name} runs")
        figure.add_trace(
            go.Scatter(
                x=layers, y=plain(median), mode="lines+markers", line={"color": colour, "dash": dash, "width": 2},
                name=f"median of {name} runs", hovertemplate=f"{name}, %{{x}} put back: %{{y:.3f}}<extra></extra>",
            )
        )  # fmt: skip
    return figure
