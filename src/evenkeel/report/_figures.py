"""Scores and losses, drawn with Plotly from ``_figure_data``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from evenkeel.report._figure_data import LossCurves, Strip
from evenkeel.report._style import BAD, FAINT, GOOD, GREY, MARGIN, add_band, blank, label, plain

__all__ = ["draw_losses", "draw_scores"]


def draw_scores(strips: Sequence[Strip], *, metric: str, majority: float) -> go.Figure:
    """Draw one row of points and a box for each method, from the top down, and the majority score as a line.

    Args:
        strips: the methods.
        metric: the task's metric.
        majority: the majority score.

    Returns:
        The figure.
    """
    figure = blank(height=70 + 78 * len(strips), xaxis={"title": {"text": label(metric)}}, margin={**MARGIN, "t": 28})
    for place, strip in enumerate(reversed(strips)):
        figure.add_trace(_box(strip, place))
        for failed in (False, True):
            figure.add_trace(_points(strip, place, failed=failed))
        lost = f" <i>({len(strip.diverged)} diverged, no score)</i>" if strip.diverged else ""
        name = f"<b>{label(strip.method)}</b>{lost}"
        figure.add_annotation(
            x=0, xref="paper", xanchor="left", y=place + 0.3, yanchor="bottom", text=name, showarrow=False
        )
    if math.isfinite(majority):
        figure.add_vline(x=majority, line={"color": GREY, "dash": "dash", "width": 1.5})
        figure.add_annotation(
            x=majority, y=1, yref="paper", yanchor="bottom", text=f"majority {majority:.3f}", showarrow=False
        )
    figure.update_yaxes(visible=False, range=[-0.55, len(strips) - 0.3], fixedrange=True)
    return figure


def draw_losses(curves: LossCurves, *, span: tuple[float, float]) -> go.Figure:
    """Draw the median and range of the losses of the runs that did not fail, and each failed run as a line of its own.

    Args:
        curves: the losses of one method.
        span: lowest and highest loss of all methods, so that the figures can be compared.

    Returns:
        The figure.
    """
    margin = 0.04 * (span[1] - span[0]) or 0.1
    figure = blank(
        height=260,
        xaxis={"title": {"text": "optimizer step"}},
        yaxis={"title": {"text": "training loss"}, "range": [span[0] - margin, span[1] + margin]},
    )
    steps = list(curves.steps)
    median, low, high = curves.summary()
    add_band(figure, steps, low, high)
    for losses, failed, seed in zip(curves.losses, curves.failed, curves.seeds, strict=True):
        if failed:
            line = {"color": BAD, "dash": "dot", "width": 1.2}
            figure.add_trace(_line(steps, losses, f"seed {seed}, failed", opacity=0.7, **line))
    figure.add_trace(_line(steps, median, "median of successful runs", color=GOOD, width=2.2))
    return figure


def _box(strip: Strip, place: int) -> go.Box:
    return go.Box(
        x=list(strip.scores),
        y=[place] * len(strip.scores),
        orientation="h",
        boxpoints=False,
        width=0.46,
        line={"color": GREY, "width": 1.2},
        fillcolor=FAINT,
        hoverinfo="skip",
    )


def _points(strip: Strip, place: int, *, failed: bool) -> go.Scatter:
    """Draw the failed runs, or the others; equal scores are spread so that all can be seen."""
    chosen = [i for i, bad in enumerate(strip.failed) if bad is failed]
    said = "failed" if failed else "not failed"
    return go.Scatter(
        x=[strip.scores[i] for i in chosen],
        y=[place + offset for offset in _spread(len(strip.scores), chosen)],
        mode="markers",
        marker={
            "color": BAD if failed else GOOD,
            "symbol": "x" if failed else "circle",
            "size": 9 if failed else 8,
            "opacity": 0.85,
        },
        text=[f"{label(strip.method)}<br>seed {strip.seeds[i]}: {strip.scores[i]:.3f}, {said}" for i in chosen],
        hovertemplate="%{text}<extra></extra>",
    )


def _spread(n: int, chosen: Sequence[int]) -> list[float]:
    """Place points within the box's width, the same way every time: no two neighbours by seed lie alike."""
    golden = (math.sqrt(5) - 1) / 2
    return [0.4 * ((golden * (i + 1)) % 1 - 0.5) if n > 1 else 0.0 for i in chosen]


def _line(
    steps: Sequence[int], losses: NDArray[np.float64], name: str, *, opacity: float = 1.0, **line: Any
) -> go.Scatter:
    return go.Scatter(
        x=list(steps),
        y=plain(losses),
        mode="lines",
        line=line,
        opacity=opacity,
        connectgaps=True,  # runs that log at other steps are not at fault
        text=[name] * len(steps),
        hovertemplate="%{text}<br>step %{x}: %{y:.3f}<extra></extra>",
    )
