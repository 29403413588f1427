"""How a study stands: counted up event by event, so that a hundred thousand runs are no burden."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

from evenkeel.study import RunRecord, RunSpec, Status, recipe_names

__all__ = ["WITH_RESULT", "Place", "Standing", "Tally"]

WITH_RESULT: tuple[Status, ...] = ("done", "failed", "diverged")


class Place(NamedTuple):
    """Runs that are counted together."""

    task: str
    model: str
    method: str


@dataclass
class Tally:
    """The runs of one place.

    Attributes:
        status: how many there are of each status.
        failed: those with a result that is no better than chance, or that diverged.
        scores: how many have a score.
        mean: of the scores on validation; 0 without any.
        squares: sum of squared distances from the mean.
        seconds: sum of the durations of the runs with a result.
        metric: the task's metric; empty before the first result.
    """

    status: Counter[Status] = field(default_factory=Counter)
    failed: int = 0
    scores: int = 0
    mean: float = 0.0
    squares: float = 0.0
    seconds: float = 0.0
    metric: str = ""

    @property
    def total(self) -> int:
        """All runs."""
        return self.status.total()

    @property
    def finished(self) -> int:
        """Those with a result."""
        return sum(self.status[status] for status in WITH_RESULT)

    @property
    def std(self) -> float:
        """Sample standard deviation (n - 1) of the scores; NaN for fewer than two."""
        return math.sqrt(self.squares / (self.scores - 1)) if self.scores > 1 else math.nan

    def take(self, outcome: Mapping[str, Any]) -> None:
        """Count a result.

        Args:
            outcome: what the run's record says.
        """
        self.failed += bool(outcome["failed"])
        self.seconds += float(outcome["wall_seconds"])
        self.metric = str(outcome["metric"])
        score = outcome["scores"]["validation"]
        if score is not None:  # Welford's update
            self.scores += 1
            before = self.mean
            self.mean += (score - before) / self.scores
            self.squares += (score - before) * (score - self.mean)


@final
class Standing:
    """The runs of a study by place and status.

    Attributes:
        places: a tally for each task, model with its recipe, and method, in the plan's order.
    """

    def __init__(self, runs: Iterable[RunRecord]) -> None:
        """Count what a store holds.

        Args:
            runs: the runs that are wanted.
        """
        records = list(runs)
        self._specs = {run.id: run.spec for run in records}
        self._recipes = recipe_names(self._specs.values())
        self._status: dict[str, Status] = {}
        self._since: dict[str, float] = {}
        self.places = _together({self.place(run.spec): Tally() for run in records})
        for run in records:
            self.count(run.spec, run.status, run.outcome)

    def recipe(self, spec: RunSpec) -> str:
        """Return what tells the recipe of a run from others of the study; empty where there is one."""
        return self._recipes.get(spec.id, "")

    def place(self, spec: RunSpec) -> Place:
        """Return where a run is counted.

        Args:
            spec: the run.

        Returns:
            Its place; several recipes stand beside the model's name.
        """
        recipe = self.recipe(spec)
        return Place(spec.task, f"{spec.model}, {recipe}" if recipe else spec.model, spec.method)

    def count(self, spec: RunSpec, status: Status, outcome: Mapping[str, Any], *, now: float | None = None) -> None:
        """Move a run to a status.

        Args:
            spec: the run.
            status: the new one.
            outcome: of a run with a result; empty otherwise.
            now: seconds on some clock, the same one as in ``left``; None where it is not known when it began.
        """
        tally = self.places.setdefault(self.place(spec), Tally())
        before = self._status.get(spec.id)
        if before is not None:
            tally.status[before] -= 1
        self._status[spec.id] = status
        tally.status[status] += 1
        self._since.pop(spec.id, None)
        if status == "running" and now is not None:
            self._since[spec.id] = now
        if outcome and status in WITH_RESULT and before not in WITH_RESULT:
            tally.take(outcome)

    def substitute(self, spec: RunSpec, instead: RunSpec) -> None:
        """Let another run, which waits, take the place of one without a result; its recipe may be the study's first.

        Args:
            spec: the run that gives way.
            instead: the other run.
        """
        left = self.place(spec)
        self.places[left].status[self._status.pop(spec.id)] -= 1
        self._since.pop(spec.id, None)
        del self._specs[spec.id]
        # From the end: there is what took other places by the same recipe.
        alike = (run for run, known in reversed(self._specs.items()) if _recipe(known) == _recipe(instead))
        known = next(alike, None)
        self._specs[instead.id] = instead
        if known is None:
            self._name_anew()
        else:
            self._recipes[instead.id] = self._recipes.get(known, "")
        self.count(instead, "queued", {})
        self.places = _together({place: tally for place, tally in self.places.items() if tally.total})

    def _name_anew(self) -> None:
        """Name recipes by what differs among them now; those that share a tally keep sharing it."""
        before = {run: self.place(spec) for run, spec in self._specs.items() if run in self._recipes}
        self._recipes = recipe_names(self._specs.values())
        moved = {place: self.place(self._specs[run]) for run, place in before.items()}
        self.places = {moved[place]: tally for place, tally in self.places.items() if place in moved}

    def counted(self, *statuses: Status) -> int:
        """Return how many runs have one of ``statuses``; all, where none is named."""
        tallies = self.places.values()
        return sum(sum(tally.status[status] for status in statuses) if statuses else tally.total for tally in tallies)

    @property
    def failed(self) -> int:
        """How many runs with a result are no better than chance, or diverged."""
        return sum(tally.failed for tally in self.places.values())

    def left(self, workers: int, *, now: float) -> float | None:
        """Estimate how long the rest takes, from the runs of this study that were measured.

        A run takes as long as those of its place did on average; where none was measured, as the average of all. What
        is running has done its part since it began. The rest is shared evenly among the workers.

        Args:
            workers: runs at a time.
            now: seconds on the clock that ``count`` was told of.

        Returns:
            Seconds; None before the first result.
        """
        measured = sum(tally.finished for tally in self.places.values())
        if not measured:
            return None
        usual = sum(tally.seconds for tally in self.places.values()) / measured
        total = 0.0
        for tally in self.places.values():
            each = tally.seconds / tally.finished if tally.finished else usual
            total += each * (tally.status["queued"] + tally.status["running"])
        spent = sum(min(now - since, usual) for since in self._since.values())
        return max(0.0, total - spent) / max(1, workers)


def _together(places: Mapping[Place, Tally]) -> dict[Place, Tally]:
    """Let stand together what shares task and model."""
    order = {place[:2]: number for number, place in reversed(list(enumerate(places)))}
    return {place: places[place] for place in sorted(places, key=lambda place: order[place[:2]])}


def _recipe(spec: RunSpec) -> tuple[object, object]:
    return spec.training, spec.overrides
