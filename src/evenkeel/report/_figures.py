"""The figures of the page, drawn with Plotly from ``_figure_data``.

Blue is a run that did not fail and vermillion one that did, everywhere, and never colour alone: failed runs are crosses
and dashed lines. Both colours are Okabe & Ito's. Labels pass through Plotly's pseudo-HTML, hence ``label``.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.colors
import plotly.graph_objects as go
from numpy.typing import NDArray

from evenkeel.report._figure_data import LossCurves, NormMap, Strip

__all__ = ["draw_losses", "draw_norms", "draw_scores", "label", "norm_range"]

GOOD, BAD = "#0072B2", "#D55E00"
BAND = "rgba(0, 114, 178, 0.22)"
GREY, FAINT = "#808890", "rgba(128, 136, 144, 0.28)"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
MARGIN = {"l": 10, "r": 14, "t": 12, "b": 10}
COLOURS = plotly.colors.sequential.Cividis[1:]  # the darkest one is lost on a dark page
LONGEST = 44  # characters of a name, or it would leave a telephone's screen


def label(text: str, longest: int = LONGEST) -> str:
    """Make a text stand for itself in Plotly's pseudo-HTML, cut to a length.

    Args:
        text: any text, such as a method's name.
        longest: how many characters may be shown.

    Returns:
        The escaped text.

    Example:
        >>> label("<b>", 10), label("component-clip", 10)
        ('&lt;b&gt;', 'component…')
    """
    text = " ".join(text.split())
    return html.escape(text if len(text) <= longest else text[: longest - 1] + "…", quote=False)


def draw_scores(strips: Sequence[Strip], *, metric: str, majority: float) -> go.Figure:
    """Draw one row of points and a box for each method, from the top down, and the majority score as a line.

    Args:
        strips: the methods.
        metric: the task's metric.
        majority: the majority score.

    Returns:
        The figure.
    """
    figure = _figure(height=70 + 78 * len(strips), xaxis={"title": {"text": label(metric)}}, margin={**MARGIN, "t": 28})
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
    figure = _figure(
        height=260,
        xaxis={"title": {"text": "optimizer step"}},
        yaxis={"title": {"text": "training loss"}, "range": [span[0] - margin, span[1] + margin]},
    )
    steps = list(curves.steps)
    median, low, high = curves.summary()
    for edge, filled in ((low, None), (high, "tonexty")):
        figure.add_trace(
            go.Scatter(
                x=steps, y=_plain(edge), mode="lines", line={"width": 0}, fill=filled, fillcolor=BAND, hoverinfo="skip"
            )
        )
    for losses, failed, seed in zip(curves.losses, curves.failed, curves.seeds, strict=True):
        if failed:
            line = {"color": BAD, "dash": "dot", "width": 1.2}
            figure.add_trace(_line(steps, losses, f"seed {seed}, failed", opacity=0.7, **line))
    figure.add_trace(_line(steps, median, "median of successful runs", color=GOOD, width=2.2))
    return figure


def draw_norms(norms: NormMap, *, failed: bool, span: tuple[float, float]) -> go.Figure:
    """Draw where in the model gradients are large and small.

    Args:
        norms: the means of one method.
        failed: whether to draw the failed runs or the others.
        span: lowest and highest value of all methods, so that the colours mean the same.

    Returns:
        The figure.
    """
    values = norms.failed if failed else norms.successful
    texts = [
        [_norm_text(row, role, value) for role, value in zip(norms.roles, line, strict=True)]
        for row, line in zip(norms.rows, values, strict=True)
    ]
    figure = _figure(height=130 + 24 * len(norms.rows), xaxis={"tickangle": -50})
    figure.add_trace(
        go.Heatmap(
            x=[label(role.replace("_", " ")) for role in norms.roles],
            y=[label(row) for row in norms.rows],
            z=[_plain(line) for line in values],
            zmin=span[0],
            zmax=span[1],
            text=texts,
            hovertemplate="%{text}<extra></extra>",
            colorscale=COLOURS,
            xgap=1,
            ygap=1,
            colorbar={"title": {"text": "log10"}, "thickness": 10, "outlinewidth": 0},
        )
    )
    figure.update_xaxes(showgrid=False, type="category", automargin=True)
    figure.update_yaxes(showgrid=False, type="category", automargin=True)
    return figure


def norm_range(maps: Sequence[NormMap]) -> tuple[float, float] | None:
    """Return the range of colours that several maps share, or None where nothing was recorded."""
    values = np.concatenate(
        [np.empty(0), *(part.ravel() for norms in maps for part in (norms.failed, norms.successful))]
    )
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if values.size else None


def _figure(**layout: Any) -> go.Figure:
    """Start a figure that reads on a light and on a dark page alike."""
    axis = {"gridcolor": FAINT, "linecolor": GREY, "zeroline": False, "automargin": True}
    base: dict[str, Any] = {
        "template": go.layout.Template(),
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 12, "color": GREY},
        "margin": MARGIN,
        "showlegend": False,
        "hoverlabel": {"bgcolor": "#22272e", "bordercolor": "#22272e", "font": {"color": "#ffffff"}, "align": "left"},
        "dragmode": False,  # a finger that scrolls the page must not zoom
    }
    given = {name: layout.pop(name, {}) for name in ("xaxis", "yaxis")}
    return go.Figure(layout={**base, **layout, **{name: {**axis, **own} for name, own in given.items()}})


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
        y=_plain(losses),
        mode="lines",
        line=line,
        opacity=opacity,
        connectgaps=True,  # runs that log at other steps are not at fault
        text=[name] * len(steps),
        hovertemplate="%{text}<br>step %{x}: %{y:.3f}<extra></extra>",
    )


def _norm_text(row: str, role: str, value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{label(row)}, {label(role)}<br>log10 norm {value:.2f} (norm {10**value:.2g})"


def _plain(values: NDArray[np.float64]) -> list[float | None]:
    """Return numbers that JSON knows; None leaves a gap."""
    return [float(value) if math.isfinite(value) else None for value in values]
