"""How figures look: colours, fonts, and texts that stand for themselves.

Blue is a run that did not fail and vermillion one that did, everywhere, and never colour alone: failed runs are crosses
and dashed lines. Colours are Okabe & Ito's. Labels pass through Plotly's pseudo-HTML, hence ``label``.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import plotly.colors
import plotly.graph_objects as go
from numpy.typing import NDArray

__all__ = [
    "BAD",
    "BAND",
    "COLOURS",
    "DASHES",
    "FAINT",
    "GOOD",
    "GREY",
    "HUES",
    "MARGIN",
    "add_band",
    "blank",
    "label",
    "plain",
]

GOOD, BAD = "#0072B2", "#D55E00"
BAND = "rgba(0, 114, 178, 0.22)"
GREY, FAINT = "#808890", "rgba(128, 136, 144, 0.28)"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
MARGIN = {"l": 10, "r": 14, "t": 12, "b": 10}
HUES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C00")  # methods, in the plan's order
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
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


def blank(**layout: Any) -> go.Figure:
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


def add_band(
    figure: go.Figure,
    x: Sequence[int],
    low: NDArray[Any],
    high: NDArray[Any],
    *,
    colour: str = BAND,
    name: str | None = None,
) -> None:
    """Fill what lies between two curves.

    Args:
        figure: the figure.
        x: where the curves have values.
        low: the lower one; NaN leaves a gap.
        high: the upper one.
        colour: of the band.
        name: what the curves are called in files.
    """
    for edge, filled in ((low, None), (high, "tonexty")):
        figure.add_trace(
            go.Scatter(
                x=list(x), y=plain(edge), mode="lines", line={"width": 0}, fill=filled, fillcolor=colour,
                hoverinfo="skip", name=name,
            )
        )  # fmt: skip


def plain(values: NDArray[Any]) -> list[float | None]:
    """Return numbers that JSON knows; None leaves a gap."""
    return [float(value) if math.isfinite(value) else None for value in values]
