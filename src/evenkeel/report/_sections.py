"""The figures of the page, each in its place with what is to be said where it is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from markupsafe import Markup

from evenkeel.report._figure_data import LossCurves, NormMap, loss_curves, loss_range, norm_maps, strip
from evenkeel.report._figures import draw_losses, draw_norms, draw_scores, norm_range
from evenkeel.report._results import Cell
from evenkeel.study import StudyFolder

__all__ = ["Panel", "Section", "section"]

Span = tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A place for one figure.

    Attributes:
        title: what stands above it.
        figure: Plotly's JSON, safe inside a script element; None where there is nothing to draw.
        height: of the figure, in pixels.
        note: what is missing, or why there is nothing to draw; may be empty.
    """

    title: str
    figure: Markup | None
    height: int
    note: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """The figures of one task and model.

    Attributes:
        title: task and model.
        scores: the scores of all methods.
        losses: a panel for each method.
        norms: for each method two panels, the failed and the successful runs.
    """

    title: str
    scores: Panel
    losses: Sequence[Panel]
    norms: Sequence[Panel]


def section(task: str, model: str, members: Sequence[Cell], folder: StudyFolder) -> Section:
    """Read and draw everything about one task and model.

    Args:
        task: the task as the report calls it.
        model: the model as the report calls it.
        members: the cells of its methods.
        folder: where their tables are.

    Returns:
        The section.
    """
    curves = [loss_curves(cell, folder) for cell in members]
    maps = norm_maps(members, folder)
    losses, norms = loss_range(curves), norm_range(maps)
    return Section(
        title=f"{task}, {model}",
        scores=_scores(members),
        losses=[_losses(curve, losses) for curve in curves],
        norms=[_norms(one, failed, norms) for one in maps for failed in (True, False)],
    )


def _scores(members: Sequence[Cell]) -> Panel:
    metric = next((cell.metric for cell in members if cell.metric), None)
    if metric is None:
        return _panel("", None, "No run has a result yet.")
    majority = next(cell.majority for cell in members if cell.finished)
    return _panel("", draw_scores([strip(cell) for cell in members], metric=metric, majority=majority))


def _losses(curves: LossCurves, span: Span) -> Panel:
    n_failed = sum(curves.failed)
    title = f"{curves.method}: {len(curves.seeds) - n_failed} successful, {n_failed} failed"
    if span is None or not curves.seeds:
        return _panel(title, None, "No run left a log of its loss.")
    return _panel(title, draw_losses(curves, span=span), _absent(curves.unlogged, "left no log of the loss"))


def _norms(norms: NormMap, failed: bool, span: Span) -> Panel:
    n, kind = (norms.n_failed, "failed") if failed else (norms.n_successful, "successful")
    title = f"{norms.method}: {n} {kind} {'run' if n == 1 else 'runs'}"
    absent = _absent(norms.unrecorded, "left no record of gradient norms")
    if span is None or not n:
        return _panel(title, None, f"No {kind} run to show. {absent}".strip())
    return _panel(title, draw_norms(norms, failed=failed, span=span), absent)


def _absent(n: int, what: str) -> str:
    return f"{n} finished {'run' if n == 1 else 'runs'} {what}." if n else ""


def _panel(title: str, figure: go.Figure | None, note: str = "") -> Panel:
    if figure is None:
        return Panel(title=title, figure=None, height=0, note=note)
    return Panel(title=title, figure=_embedded(figure), height=int(figure.layout.height), note=note)


def _embedded(figure: go.Figure) -> Markup:
    """Return a figure as JSON in which no ``</script>`` can end the element that it stands in."""
    text = str(figure.to_json())
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704  made safe above
