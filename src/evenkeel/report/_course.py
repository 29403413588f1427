"""The score while training goes on, where a study measured it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from evenkeel.report._figure_data import Floats, floats, summary, tables_of
from evenkeel.report._results import Cell
from evenkeel.report._style import BAD, GOOD, GREY, add_band, blank, label, plain
from evenkeel.study import StudyFolder

__all__ = ["Course", "draw_course", "score_course"]


@dataclass(frozen=True, kw_only=True)
class Course:
    """The validation scores of one method's runs while they trained, ``R`` runs at ``S`` steps.

    Attributes:
        method: the method.
        steps: optimizer steps at which any run was scored, shape ``[S]``.
        failed: whether the runs failed in the end.
        scores: score of each run, shape ``[R, S]``; NaN where it was not scored.
        phase_ends: steps at which a phase of training ended, the end of training apart.
    """

    method: str
    steps: tuple[int, ...]
    failed: tuple[bool, ...]
    scores: Floats
    phase_ends: tuple[int, ...]


def score_course(cell: Cell, folder: StudyFolder) -> Course:
    """Read the scores of a cell's runs.

    Args:
        cell: the runs.
        folder: where their tables are.

    Returns:
        The scores on a common axis of steps; no runs where nothing was scored in training.
    """
    tables = tables_of(cell, folder, "course")
    steps = sorted({step for _, table in tables for step in table["step"].to_pylist()})
    scores = np.full((len(tables), len(steps)), np.nan)
    ends = set[int]()
    for row, (_, table) in zip(scores, tables, strict=True):
        row[np.searchsorted(steps, table["step"].to_numpy())] = floats(table, "score")
        phases = table["phase"].to_pylist()
        ends |= {
            step
            for step, phase, after in zip(table["step"].to_pylist(), phases, phases[1:], strict=False)
            if after != phase
        }
    return Course(
        method=cell.method,
        steps=tuple(steps),
        failed=tuple(bool(run.outcome["failed"]) for run, _ in tables),
        scores=scores,
        phase_ends=tuple(sorted(ends)),
    )


def draw_course(
    course: Course, *, metric: str, reference: tuple[str, float] | None, span: tuple[float, float]
) -> go.Figure:
    """Draw median and range of the runs that did not fail, and each failed run as a line of its own.

    Args:
        course: the scores of one method.
        metric: the task's metric.
        reference: a score to compare with, and what it is called: the median of full fine-tuning, say.
        span: lowest and highest score of all methods.

    Returns:
        The figure.
    """
    margin = 0.04 * (span[1] - span[0]) or 0.02
    figure = blank(
        height=260,
        xaxis={"title": {"text": "optimizer step"}},
        yaxis={"title": {"text": label(metric)}, "range": [span[0] - margin, span[1] + margin]},
    )
    steps, failed = list(course.steps), np.asarray(course.failed, dtype=bool)
    kept = course.scores[~failed]
    if len(kept):
        median, low, high = summary(kept)
        add_band(figure, steps, low, high, name="range of successful runs")
        figure.add_trace(
            go.Scatter(
                x=steps, y=plain(median), mode="lines+markers", line={"color": GOOD, "width": 2.2},
                name="median of successful runs", hovertemplate="median<br>step %{x}: %{y:.3f}<extra></extra>",
            )
        )  # fmt: skip
    for scores in course.scores[failed]:
        figure.add_trace(
            go.Scatter(
                x=steps, y=plain(scores), mode="lines", line={"color": BAD, "dash": "dot", "width": 1.2}, opacity=0.7,
                name="failed run", hovertemplate="failed run<br>step %{x}: %{y:.3f}<extra></extra>",
            )
        )  # fmt: skip
    for end in course.phase_ends:
        figure.add_vline(x=end, line={"color": GREY, "dash": "dot", "width": 1})
    if reference is not None:
        figure.add_hline(y=reference[1], line={"color": GREY, "dash": "dash", "width": 1.5})
        figure.add_annotation(
            x=0,
            xref="paper",
            xanchor="left",
            y=reference[1],
            yanchor="bottom",
            text=label(reference[0]),
            showarrow=False,
        )
    return figure
