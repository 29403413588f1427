"""Proposals as one page that opens in a browser."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING

from evenkeel.calibrate._proposal import Proposal
from evenkeel.calibrate._thresholds import PAPER

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["figure"]

_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#808890"
_BAND = "rgba(0, 114, 178, 0.22)"
_LOG = {"type": "log", "dtick": 1, "exponentformat": "e"}


def figure(proposal: Proposal, title: str) -> go.Figure:
    """Draw the loss and the relative step against the learning rate, and norms with thresholds, proposals marked.

    Args:
        proposal: the proposals.
        title: what it is of.

    Returns:
        A figure of three panels.
    """
    from plotly.subplots import make_subplots  # here: a command that only prints does without Plotly

    drawn = make_subplots(
        rows=3,
        vertical_spacing=0.1,
        subplot_titles=(
            "Loss after a step of each learning rate, and its mean over seeds, smoothed (band: two standard errors)",
            "Step of the median component, relative to its weights, and what each rule says of r",
            f"Norms of gradients by role, and thresholds that leave {proposal.quantile:.0%} of them alone",
        ),
    )
    drawn.update_layout(
        title=html.escape(title, quote=False),
        height=1100,
        template="plotly_white",
        showlegend=False,
        hovermode="closest",
    )
    _draw_losses(drawn, proposal)
    _draw_steps(drawn, proposal)
    _draw_norms(drawn, proposal)
    return drawn


def _draw_losses(drawn: go.Figure, proposal: Proposal) -> None:
    test, place = proposal.range_test, {"row": 1, "col": 1}
    rates, curve = test.rates.tolist(), test.curve
    for losses in test.losses:
        drawn.add_scatter(
            x=rates, y=losses.tolist(), mode="markers", marker={"color": _GREY, "size": 4}, opacity=0.6, **place
        )
    for edge, filled in ((curve.values - 2 * curve.errors, None), (curve.values + 2 * curve.errors, "tonexty")):
        drawn.add_scatter(
            x=rates, y=edge.tolist(), mode="lines", line={"width": 0}, fill=filled, fillcolor=_BAND, hoverinfo="skip",
            **place,
        )  # fmt: skip
    drawn.add_scatter(x=rates, y=curve.values.tolist(), mode="lines", line={"color": _BLUE, "width": 2.5}, **place)
    marks = [
        (proposal.learning_rate.value, "proposed", _GREEN, "solid"),
        (test.stable, "stable up to", _ORANGE, "dash"),
    ]
    if test.steepest is not None:
        marks.append((test.steepest, "steepest descent", _BLUE, "dot"))
    for height, (rate, name, colour, dash) in enumerate(marks):
        drawn.add_vline(x=rate, line={"color": colour, "dash": dash, "width": 2}, **place)
        drawn.add_annotation(  # on a logarithmic axis lines stand at the value, annotations at its logarithm
            x=math.log10(rate), y=1 - 0.12 * height, yref="y domain", text=f"{name} {rate:.2g}", font={"color": colour},
            xref="x", xanchor="right", showarrow=False,
        )  # fmt: skip
    drawn.update_xaxes(**_LOG, title="learning rate", **place)
    drawn.update_yaxes(title="loss", **place)


def _draw_steps(drawn: go.Figure, proposal: Proposal) -> None:
    place, rates = {"row": 2, "col": 1}, proposal.range_test.rates.tolist()
    drawn.add_scatter(x=rates, y=proposal.ratios.tolist(), mode="lines+markers", line={"color": _BLUE}, **place)
    for number, rule in enumerate(rule for rule in proposal.rules if rule.max_update is not None):
        colour, text = (_GREY if number else _GREEN), f"{rule.name} {rule.max_update:g}"
        shown = {"x": [rates[0], rates[-1]], "y": [rule.max_update] * 2}
        # Rules may agree: their names stand at the two ends in turn.
        named = {"text": [text, ""], "textposition": "top right"} if number % 2 else {"text": ["", text]}
        drawn.add_scatter(
            **{"textposition": "top left", **shown, **named}, mode="lines+text", textfont={"color": colour},
            line={"color": colour, "dash": "dash" if number else "solid"}, **place,
        )  # fmt: skip
    drawn.update_xaxes(**_LOG, title="learning rate", **place)
    drawn.update_yaxes(**_LOG, title="relative step", **place)


def _draw_norms(drawn: go.Figure, proposal: Proposal) -> None:
    place, seen = {"row": 3, "col": 1}, [one for one in proposal.thresholds if any(one.norms)]
    roles = [one.role for one in seen]
    if not seen:
        return
    low, first, middle, third, high = (list(column) for column in zip(*(one.norms for one in seen), strict=True))
    drawn.add_box(
        x=roles, lowerfence=low, q1=first, median=middle, q3=third, upperfence=high, marker={"color": _BLUE}, **place
    )
    drawn.add_scatter(
        x=roles,
        y=[one.max_norm for one in seen],
        text=[f"{one.max_norm:g} clips {one.clipped:.0%}" for one in seen],
        mode="markers",
        marker={"color": _GREEN, "symbol": "line-ew-open", "size": 26, "line": {"width": 3}},
        **place,
    )
    drawn.add_hline(y=PAPER, line={"color": _ORANGE, "dash": "dash"}, annotation_text=f"the paper's {PAPER:g}", **place)
    drawn.layout.annotations[-1].y = math.log10(PAPER)
    drawn.update_yaxes(**_LOG, title="norm", **place)
