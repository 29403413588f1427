"""The numbers of a study: one row for each task, model and method."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from evenkeel.stats import describe
from evenkeel.study import Plan, RunRecord, recipe_names

__all__ = ["Cell", "Row", "cells", "groups", "results"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What the runs of one method gave on one task with one model; a number that there are no runs for is NaN.

    Scores are those of the validation part, in the task's metric.

    Attributes:
        task: the task's name; with the data's fingerprint where the store holds runs on other data of that name.
        model: the model's name; with its fingerprint where two models share it, and with what differs in the recipe
            where there are several.
        method: the method as the plan spells it.
        total: the planned runs.
        finished: those with a result, diverged ones among them.
        n: the runs with a score: finished and not diverged.
        metric: the task's metric; None before the first result.
        majority: the score of always answering the commonest label.
        mean: mean score.
        std: sample standard deviation (``ddof=1``) of the scores; needs two.
        min: lowest score.
        median: median score.
        max: highest score.
        failed: finished runs that failed: no better than chance (one-sided test, p > .05), or diverged.
        failed_majority: finished runs not above the majority score, or diverged: the paper's line.
        diverged: finished runs whose loss or predictions became NaN or infinite.
        wall_seconds: median duration of the finished runs, in seconds.
    """

    task: str
    model: str
    method: str
    total: int
    finished: int
    n: int
    metric: str | None
    majority: float
    mean: float
    std: float
    min: float
    median: float
    max: float
    failed: int
    failed_majority: int
    diverged: int
    wall_seconds: float


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The runs of one method on one task with one model, by seed.

    Attributes:
        task: the task as the report calls it.
        plain_model: the model as the report calls it.
        recipe: what differs in the recipe from those of other cells; empty where there is one recipe.
        method: the method.
        runs: its runs, whatever their status.
    """

    task: str
    plain_model: str
    recipe: str
    method: str
    runs: tuple[RunRecord, ...]

    @property
    def model(self) -> str:
        """The model and the recipe: what methods are compared within."""
        return ", ".join(filter(None, (self.plain_model, self.recipe)))

    @property
    def finished(self) -> list[RunRecord]:
        """The runs with a result."""
        return [run for run in self.runs if run.finished]

    @property
    def scored(self) -> list[RunRecord]:
        """The runs with a score."""
        return [run for run in self.runs if run.status in ("done", "failed")]

    @property
    def scores(self) -> list[float]:
        """The validation scores."""
        return [float(run.outcome["scores"]["validation"]) for run in self.scored]

    @property
    def by_draw(self) -> dict[int | str, float]:
        """The validation scores by what tells a run from others of its cell: the seed, or those varied apart."""
        return {run.spec.draw: float(run.outcome["scores"]["validation"]) for run in self.scored}

    @property
    def failed(self) -> list[RunRecord]:
        """The finished runs that are no better than chance, or diverged."""
        return [run for run in self.finished if run.outcome["failed"]]

    @property
    def metric(self) -> str | None:
        """The task's metric; None before the first result."""
        return next((str(run.outcome["metric"]) for run in self.finished), None)

    @property
    def majority(self) -> float:
        """The majority score; NaN before the first result."""
        return next((float(run.outcome["majority"]["validation"]) for run in self.finished), float("nan"))


def cells(plan: Plan, runs: Iterable[RunRecord]) -> list[Cell]:
    """Sort the runs of a study into cells.

    Args:
        plan: the plan, which gives the order.
        runs: the runs of its store.

    Returns:
        One cell for each task, model and method. Runs on other data, or with another model of the same name, are
        never pooled: they are cells of their own, with a fingerprint in the name. Nor are runs by another recipe, whose
        name stands beside the model's, so that methods are compared within a recipe.
    """
    runs = list(runs)
    recipes = recipe_names(run.spec for run in runs)
    found: defaultdict[_Key, list[RunRecord]] = defaultdict(list)
    for run in runs:
        spec = run.spec
        data, model = (spec.task, spec.data_fingerprint), (spec.model, spec.model_fingerprint)
        found[data, model, recipes[spec.id], spec.method].append(run)
    tasks, models = _labels(key[0] for key in found), _labels(key[1] for key in found)
    order = {name: i for i, name in enumerate([*(task.name for task in plan.tasks), *plan.expanded_methods()])}
    places = {key: i for i, key in enumerate([*tasks, *models])}  # as they first appear, which is the plan's order
    by_recipe = {name: i for i, name in enumerate(dict.fromkeys(key[2] for key in found))}

    def rank(key: _Key) -> tuple[int, ...]:
        task, model, recipe, method = key
        last = len(order)
        return order.get(task[0], last), places[task], places[model], by_recipe[recipe], order.get(method, last)

    return [
        Cell(
            task=tasks[key[0]],
            plain_model=models[key[1]],
            recipe=key[2],
            method=key[3],
            runs=tuple(sorted(found[key], key=_draw)),
        )
        for key in sorted(found, key=rank)
    ]


_Key = tuple[tuple[str, str], tuple[str, str], str, str]  # data, model, recipe, method


def _draw(run: RunRecord) -> tuple[int, ...]:
    return run.spec.seed, run.spec.init_seed or 0, run.spec.order_seed or 0, run.spec.split_seed or 0


def _labels(pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Call each name and fingerprint by the name alone where it stands for one thing only."""
    different = list(dict.fromkeys(pairs))
    names = [name for name, _ in different]
    return {(name, mark): name if names.count(name) == 1 else f"{name} [{mark[:8]}]" for name, mark in different}


def groups(found: Sequence[Cell]) -> Iterator[tuple[str, str, list[Cell]]]:
    """Yield task, model and the cells of its methods, in order."""
    for (task, model), members in itertools.groupby(found, key=lambda cell: (cell.task, cell.model)):
        yield task, model, list(members)


def results(plan: Plan, runs: Iterable[RunRecord]) -> list[Row]:
    """Return the numbers of a study.

    Args:
        plan: the plan.
        runs: the runs of its store.

    Returns:
        One row for each task, model and method, in the plan's order.

    Example:
        >>> from evenkeel.study import Plan
        >>> results(Plan(tasks=[{"name": "rte"}], seeds=3), [])  # nothing was queued
        []
    """
    return [_row(cell) for cell in cells(plan, runs)]


def _row(cell: Cell) -> Row:
    scores, finished = describe(cell.scores), cell.finished
    return Row(
        task=cell.task,
        model=cell.model,
        method=cell.method,
        total=len(cell.runs),
        finished=len(finished),
        n=scores.n,
        metric=cell.metric,
        majority=cell.majority,
        mean=scores.mean,
        std=scores.std,
        min=scores.min,
        median=scores.median,
        max=scores.max,
        failed=len(cell.failed),
        failed_majority=sum(bool(run.outcome["failed_by_majority"]) for run in finished),
        diverged=sum(run.status == "diverged" for run in finished),
        wall_seconds=float(np.median([run.outcome["wall_seconds"] for run in finished])) if finished else float("nan"),
    )
