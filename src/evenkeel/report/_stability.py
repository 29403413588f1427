"""Where methods fail: over the learning rates, thresholds and whatever else a study sweeps."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from evenkeel.report._figure_data import Floats
from evenkeel.report._results import Cell
from evenkeel.report._style import COLOURS, blank, label

__all__ = ["Stability", "draw_stability", "stabilities"]


@dataclass(frozen=True, kw_only=True)
class Stability:
    """The share of failed runs of each method with each recipe.

    Attributes:
        task: the task as the report calls it.
        model: the model, whatever the recipe.
        metric: the task's metric.
        methods: the methods.
        recipes: the recipes, by what differs among them.
        failed: failed runs, shape ``[methods, recipes]``.
        finished: finished runs, the same shape.
        means: mean scores of those that have one; NaN where none has.
    """

    task: str
    model: str
    metric: str
    methods: tuple[str, ...]
    recipes: tuple[str, ...]
    failed: Floats
    finished: Floats
    means: Floats


def stabilities(found: Iterable[Cell]) -> list[Stability]:
    """Collect the cells of each task and model over recipes and methods' options.

    Args:
        found: all cells.

    Returns:
        One for each task and model of which something was swept: several recipes, or one method with several options.
    """
    by_place: defaultdict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in found:
        by_place[cell.task, cell.plain_model].append(cell)
    made = [_stability(task, model, members) for (task, model), members in by_place.items()]
    return [one for one in made if len(one.recipes) > 1 or _options_swept(one.methods)]


def _stability(task: str, model: str, members: Sequence[Cell]) -> Stability:
    methods = tuple(dict.fromkeys(cell.method for cell in members))
    recipes = tuple(dict.fromkeys(cell.recipe for cell in members))
    failed, finished = np.zeros((2, len(methods), len(recipes)))
    means = np.full((len(methods), len(recipes)), np.nan)
    for cell in members:
        at = methods.index(cell.method), recipes.index(cell.recipe)
        failed[at], finished[at] = len(cell.failed), len(cell.finished)
        if cell.scores:
            means[at] = np.mean(cell.scores)
    return Stability(
        task=task,
        model=model,
        metric=next((cell.metric for cell in members if cell.metric), "score") or "score",
        methods=methods,
        recipes=recipes,
        failed=failed,
        finished=finished,
        means=means,
    )


def _options_swept(methods: Sequence[str]) -> bool:
    return any(len(list(group)) > 1 for _, group in itertools.groupby(sorted(methods), key=_bare))


def _bare(method: str) -> str:
    """Return a method without its options."""
    return "+".join(part.partition(":")[0] for part in method.split("+"))


def draw_stability(stability: Stability) -> go.Figure:
    """Draw the share of failed runs as a heat map with its numbers in it.

    Args:
        stability: what was counted.

    Returns:
        The figure.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(stability.finished > 0, stability.failed / stability.finished, np.nan)
    texts = [
        [f"{bad:.0f}/{n:.0f}" if n else "" for bad, n in zip(*rows, strict=True)]
        for rows in zip(stability.failed, stability.finished, strict=True)
    ]
    figure = blank(height=150 + 34 * len(stability.methods), xaxis={"tickangle": -30})
    figure.add_trace(
        go.Heatmap(
            x=[label(recipe or "the recipe", 30) for recipe in stability.recipes],
            y=[label(method, 34) for method in stability.methods],
            z=[[None if np.isnan(share) else float(share) for share in row] for row in shares],
            zmin=0,
            zmax=1,
            text=texts,
            texttemplate="%{text}",
            customdata=[[None if np.isnan(mean) else round(float(mean), 4) for mean in row] for row in stability.means],
            hovertemplate="%{y}<br>%{x}<br>failed %{text}, mean "
            f"{label(stability.metric)} %{{customdata:.3f}}<extra></extra>",
            colorscale=COLOURS,
            xgap=2,
            ygap=2,
            colorbar={"title": {"text": "failed"}, "thickness": 10, "outlinewidth": 0, "tickformat": ".0%"},
        )
    )
    figure.update_xaxes(showgrid=False, type="category")
    figure.update_yaxes(showgrid=False, type="category", autorange="reversed")
    return figure
