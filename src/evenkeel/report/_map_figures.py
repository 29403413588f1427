"""Maps of a model's components, drawn; and their values, small enough for a page to hold many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from evenkeel.report._component_maps import ComponentMap
from evenkeel.report._figure_data import Floats, value_range
from evenkeel.report._style import COLOURS, blank, label

__all__ = ["colour_span", "draw_map", "sparse"]

_DIGITS = 3


def draw_map(one: ComponentMap, *, failed: bool, span: tuple[float, float], unit: str) -> go.Figure:
    """Draw the whole of training: layers from the bottom up, roles to the right.

    Args:
        one: the measure's values.
        failed: whether to draw the failed runs or the others.
        span: lowest and highest value of all methods, so that the colours mean the same.
        unit: of the values.

    Returns:
        The figure.
    """
    grid = one.failed if failed else one.successful
    figure = blank(height=130 + 24 * len(one.rows), xaxis={"tickangle": -50})
    figure.add_trace(
        go.Heatmap(
            x=[label(role.replace("_", " ")) for role in one.roles],
            y=[label(row) for row in one.rows],
            z=sparse(grid)[0],
            zmin=span[0],
            zmax=span[1],
            hovertemplate="%{y}, %{x}: %{z:.3g}<extra></extra>",
            colorscale=COLOURS,
            xgap=1,
            ygap=1,
            colorbar={"title": {"text": unit}, "thickness": 10, "outlinewidth": 0},
        )
    )
    figure.update_xaxes(showgrid=False, type="category", automargin=True)
    figure.update_yaxes(showgrid=False, type="category", automargin=True)
    return figure


def colour_span(maps: Sequence[ComponentMap]) -> tuple[float, float]:
    """Return the range of colours that the maps of a measure share, over all parts of training.

    Args:
        maps: the maps.

    Returns:
        Lowest and highest value; 0 and 1 where there are none.
    """
    low, high = value_range(part for one in maps for part in (one.failed, one.successful)) or (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def sparse(grid: Floats) -> list[list[list[float | None]]]:
    """Write values with three decimals, None for none: a page holds ten thousands of them.

    Args:
        grid: shape ``[parts, rows, roles]``.

    Returns:
        The values.
    """
    return [
        [[round(float(value), _DIGITS) if np.isfinite(value) else None for value in line] for line in part]
        for part in grid
    ]
