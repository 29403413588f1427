"""What the best of a few runs may be expected to score, by how many one can pay for."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from evenkeel.report._results import Cell
from evenkeel.report._style import DASHES, GREY, HUES, MARGIN, blank, label
from evenkeel.stats import expected_maximum

__all__ = ["draw_budgets"]


def draw_budgets(members: Sequence[Cell]) -> go.Figure:
    """Draw the expected best score against the number of runs, a line for each method.

    Args:
        members: the cells of the methods; some have scores.

    Returns:
        The figure.

    Source: Dodge et al. 2019, arXiv 1909.03004.
    """
    metric = next((cell.metric for cell in members if cell.metric), "score")
    figure = blank(
        height=330,
        xaxis={"title": {"text": "runs"}, "rangemode": "tozero"},
        yaxis={"title": {"text": f"expected best {label(metric or '')}"}},
        showlegend=True,
        legend={"orientation": "h", "y": -0.28, "x": 0, "font": {"color": GREY}},
        margin={**MARGIN, "b": 60},
    )
    for place, cell in enumerate(members):
        best = expected_maximum(cell.scores)
        if best.size:
            figure.add_trace(
                go.Scatter(
                    x=list(range(1, best.size + 1)),
                    y=best.tolist(),
                    mode="lines+markers" if best.size < 3 else "lines",
                    name=label(cell.method),
                    line={
                        "color": HUES[place % len(HUES)],
                        "dash": DASHES[place // len(HUES) % len(DASHES)],
                        "width": 2,
                    },
                    hovertemplate=f"{label(cell.method)}<br>%{{x}} runs: %{{y:.3f}}<extra></extra>",
                )
            )
    return figure
