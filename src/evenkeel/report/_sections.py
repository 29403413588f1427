"""The figures of the page, each in its place with what is to be said where it is missing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup

from evenkeel.report._agreement import Agreement, agreement
from evenkeel.report._budgets import draw_budgets
from evenkeel.report._component_maps import HALF_TIME, MEASURES, ComponentMap, component_maps
from evenkeel.report._course import Course, draw_course, score_course
from evenkeel.report._figure_data import LossCurves, loss_curves, strip, value_range
from evenkeel.report._figures import draw_losses, draw_scores
from evenkeel.report._map_figures import colour_span, draw_map, sparse
from evenkeel.report._phases import CHANGES, draw_phase_drift, phase_drift
from evenkeel.report._put_back import draw_put_back, put_back
from evenkeel.report._results import Cell
from evenkeel.report._stability import Stability, draw_stability
from evenkeel.study import StudyFolder

__all__ = ["Explorer", "Panel", "Section", "embedded", "section", "stability_panel"]

Span = tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A place for one figure.

    Attributes:
        title: what stands above it.
        drawn: the figure; None where there is nothing to draw.
        note: what is missing, or why there is nothing to draw; may be empty.
        name: what files that are saved from it are called.
    """

    title: str
    drawn: go.Figure | None
    note: str = ""
    name: str = "figure"

    @property
    def figure(self) -> Markup | None:
        """The figure as Plotly's JSON, safe inside a script element."""
        return None if self.drawn is None else embedded(str(self.drawn.to_json()))

    @property
    def height(self) -> int:
        """Of the figure, in pixels."""
        return 0 if self.drawn is None else int(self.drawn.layout.height)


@dataclass(frozen=True, kw_only=True)
class Explorer:
    """Maps of a model that the reader chooses measure and part of training of.

    Attributes:
        measures: for each measure its key, name and how it is read.
        panels: for each method two, the failed and the successful runs.
        values: what the page's script draws from, as JSON safe inside a script element.
    """

    measures: Sequence[tuple[str, str, str]]
    panels: Sequence[Panel]
    values: Markup


@dataclass(frozen=True, kw_only=True)
class Section:
    """The figures of one task and model.

    Attributes:
        title: task and model.
        scores: the scores of all methods.
        agreements: for each method how often its runs disagree; empty where nothing can be compared.
        budgets: the expected best score by number of runs; None without scores.
        losses: a panel for each method.
        courses: scores in training, a panel for each method; empty if nothing was scored in training.
        maps: maps of components; None if nothing was recorded.
        unrecorded: what is missing of the maps.
        drifts: change by layer and phase, for methods that train in phases.
        put_back: layer replacement, a panel for each method; empty if nothing was put back.
    """

    title: str
    scores: Panel
    agreements: Sequence[Agreement]
    budgets: Panel | None
    losses: Sequence[Panel]
    courses: Sequence[Panel]
    maps: Explorer | None
    unrecorded: str
    drifts: Sequence[Panel]
    put_back: Sequence[Panel]

    def panels(self) -> list[Panel]:
        """Return all panels, in the order of the page."""
        maps = self.maps.panels if self.maps else []
        budgets = [self.budgets] if self.budgets else []
        return [self.scores, *budgets, *self.losses, *self.courses, *maps, *self.drifts, *self.put_back]


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
    courses = [score_course(cell, folder) for cell in members]
    maps = component_maps(members, folder)
    losses = value_range(curve.losses for curve in curves)
    scores = value_range(course.scores for course in courses)
    rows = maps[0][0].rows if maps and maps[0] else ()
    finished, recorded = sum(len(cell.finished) for cell in members), _recorded(maps)
    return Section(
        title=f"{task}, {model}",
        scores=_scores(members),
        agreements=[found for cell in members if (found := agreement(cell, folder))],
        budgets=_panel("", draw_budgets(members), name="budget")
        if any(len(cell.scores) > 1 for cell in members)
        else None,
        losses=[_losses(curve, losses) for curve in curves],
        courses=[_course(course, members, scores) for course in courses if scores and len(course.scores)],
        maps=_explorer(maps) if recorded else None,
        unrecorded=_absent(finished - recorded, "left no record of gradient norms"),
        drifts=[
            _panel(f"{drift.method}: {CHANGES[drift.change]}", draw_phase_drift(drift), _of(drift.runs), name="phases")
            for cell in members
            for drift in phase_drift(cell, folder, rows)
        ],
        put_back=[panel for cell in members if (panel := _put_back(cell, folder))],
    )


def stability_panel(stability: Stability) -> Panel:
    """Draw where methods fail, over what was swept.

    Args:
        stability: what was counted.

    Returns:
        The panel.
    """
    return _panel(f"{stability.task}, {stability.model}", draw_stability(stability), name="stability")


def _scores(members: Sequence[Cell]) -> Panel:
    metric = next((cell.metric for cell in members if cell.metric), None)
    if metric is None:
        return _panel("", None, "No run has a result yet.")
    majority = next(cell.majority for cell in members if cell.finished)
    return _panel("", draw_scores([strip(cell) for cell in members], metric=metric, majority=majority), name="scores")


def _losses(curves: LossCurves, span: Span) -> Panel:
    n_failed = sum(curves.failed)
    title = f"{curves.method}: {len(curves.seeds) - n_failed} successful, {n_failed} failed"
    if span is None or not curves.seeds:
        return _panel(title, None, "No run left a log of its loss.")
    note = _absent(curves.unlogged, "left no log of the loss")
    return _panel(title, draw_losses(curves, span=span), note, name="loss")


def _course(course: Course, members: Sequence[Cell], span: Span) -> Panel:
    metric = next((cell.metric for cell in members if cell.metric), None) or "score"
    first = members[0]
    reference = None
    if first.scores and course.method != first.method:
        reference = (f"{first.method}, median in the end", float(np.median(first.scores)))
    figure = draw_course(course, metric=metric, reference=reference, span=_with(span or (0.0, 1.0), reference))
    return _panel(f"{course.method}: {len(course.scores)} runs", figure, name="course")


def _with(span: tuple[float, float], reference: tuple[str, float] | None) -> tuple[float, float]:
    values = [*span, *([reference[1]] if reference else [])]
    return min(values), max(values)


def _recorded(maps: Sequence[Sequence[ComponentMap]]) -> int:
    return sum(max((one.n_failed + one.n_successful for one in of_method), default=0) for of_method in maps)


def _explorer(maps: Sequence[Sequence[ComponentMap]]) -> Explorer:
    by_measure = {
        key: [next(one for one in of_method if one.measure == key) for of_method in maps] for key in _keys(maps)
    }
    told = [key for key, of_methods in by_measure.items() if any(one.tells for one in of_methods)]
    by_measure = {key: by_measure[key] for key in told or [next(iter(by_measure))]}
    known = {**MEASURES, "half_time": HALF_TIME}
    values: dict[str, Any] = {}
    for key, of_methods in by_measure.items():
        span = colour_span(of_methods)
        values[key] = {
            "unit": known[key].unit,
            "span": span,
            "maps": [sparse(grid) for one in of_methods for grid in (one.failed, one.successful)],
        }
    first = next(iter(by_measure))
    panels = []
    for one in by_measure[first]:
        for failed in (True, False):
            n, kind = (one.n_failed, "failed") if failed else (one.n_successful, "successful")
            title = f"{one.method}: {n} {kind} {'run' if n == 1 else 'runs'}"
            figure = draw_map(one, failed=failed, span=colour_span(by_measure[first]), unit=known[first].unit)
            panels.append(
                _panel(title, figure if n else None, "" if n else f"No {kind} run to show.", name="components")
            )
    return Explorer(
        measures=[(key, known[key].name, known[key].how) for key in by_measure],
        panels=panels,
        values=embedded(json.dumps(values, separators=(",", ":"))),
    )


def _keys(maps: Sequence[Sequence[ComponentMap]]) -> list[str]:
    return [one.measure for one in maps[0]]


def _put_back(cell: Cell, folder: StudyFolder) -> Panel | None:
    scores, failed = put_back(cell, folder)
    if not len(scores):
        return None
    title = f"{cell.method}: {len(failed) - sum(failed)} successful, {sum(failed)} failed"
    return _panel(title, draw_put_back(scores, failed, metric=cell.metric or "score"), name="layer-replacement")


def _of(runs: int) -> str:
    return f"Mean over {runs} {'run' if runs == 1 else 'runs'}."


def _absent(n: int, what: str) -> str:
    return f"{n} finished {'run' if n == 1 else 'runs'} {what}, or one that cannot be read." if n else ""


def _panel(title: str, figure: go.Figure | None, note: str = "", *, name: str = "figure") -> Panel:
    return Panel(title=title, drawn=figure, note=note, name=name)


def embedded(text: str) -> Markup:
    """Return JSON in which no ``</script>`` can end the element that it stands in.

    Args:
        text: the JSON.

    Returns:
        The same value, written otherwise.
    """
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704  made safe above
