"""Two methods side by side, judged: what is shown, by which test, and how many seeds would show the rest."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from evenkeel.report._results import Cell, groups
from evenkeel.stats import (
    Comparison,
    PairedComparison,
    compare,
    compare_failures,
    compare_paired,
    compare_paired_failures,
    holm,
    runs_needed,
)

__all__ = ["ALPHA", "FEWEST", "FEWEST_FOR_INTERVALS", "MOST", "Family", "Judged", "Verdict", "families", "judge"]

ALPHA = 0.05
FEWEST = 5  # runs of each method, below which nothing is tested
FEWEST_FOR_INTERVALS = 10  # below it a bootstrap interval of a mean is too narrow to claim a difference from
MOST = 300  # runs of each method: nobody wants to hear of more

Verdict = Literal["more", "less", "not shown", "hint", "not judged", "too few"]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A method against another; a number that there are too few runs for is NaN.

    Attributes:
        base: what it is compared with.
        other: the method.
        paired: whether runs with the same seeds were compared pair by pair.
        comparisons: how many comparisons share the level.
        n: scores of the method and of what it is compared with, that were compared.
        scores: the comparison of scores; None where there are too few.
        spread_p: p value of equal spreads.
        failures_p: p value of equally many failed runs.
        spread_adjusted: ``spread_p``, adjusted by Holm's method.
        failures_adjusted: ``failures_p``, adjusted by Holm's method.
    """

    base: Cell
    other: Cell
    paired: bool
    comparisons: int
    n: tuple[int, int]
    scores: Comparison | PairedComparison | None
    spread_p: float
    failures_p: float
    spread_adjusted: float = math.nan
    failures_adjusted: float = math.nan

    @property
    def mean(self) -> Verdict:
        """Whether its scores are higher (``more``) or lower on average."""
        if self.scores is None:
            return "too few"
        low, high = self.scores.difference_interval
        if low <= 0 <= high:
            return "not shown"
        if self._too_narrow:
            return "not judged"
        if min(self.n) < FEWEST_FOR_INTERVALS:
            return "hint"
        return "more" if low > 0 else "less"

    @property
    def all_failed(self) -> tuple[str, ...]:
        """Methods whose runs all failed: that they score alike is not steadiness."""
        return tuple(
            cell.method for cell in (self.other, self.base) if cell.finished and len(cell.failed) == len(cell.finished)
        )

    @property
    def _too_narrow(self) -> bool:
        """Whether what is resampled does not vary: in pairs both methods' scores, or else those of one."""
        constant = [len(set(scores)) == 1 for scores in _scores(self)]
        return all(constant) if self.paired else any(constant)

    @property
    def spread(self) -> Verdict:
        """Whether its scores lie further apart (``more``) or closer together."""
        if self.scores is None:
            return "too few"
        if math.isnan(self.spread_adjusted) or self.all_failed:
            return "not judged"
        if self.spread_adjusted > ALPHA:
            return "not shown"
        return "less" if self.scores.std_ratio < 1 else "more"

    @property
    def failures(self) -> Verdict:
        """Whether more of its runs failed, or fewer."""
        if math.isnan(self.failures_p):
            return "too few"
        if self.failures_adjusted > ALPHA:
            return "not shown"
        other, base = self.other, self.base
        fewer = len(other.failed) * len(base.finished) < len(base.failed) * len(other.finished)
        return "less" if fewer else "more"

    def needed(self, of: Literal["mean", "spread", "failures"]) -> int | None:
        """Estimate how many runs of each method would show a difference as large as the one seen.

        Args:
            of: what differs.

        Returns:
            The number of runs of each method; None where there is no such number up to ``MOST``, or too few runs to
            tell by.
        """
        found = _failures(self.base, self.other, self.paired) if of == "failures" else _scores(self)
        if min(map(len, found)) < FEWEST:
            return None
        return runs_needed(*found, of, paired=self.paired, alpha=ALPHA / self.comparisons, most=MOST)


@dataclass(frozen=True, kw_only=True)
class Family:
    """The methods of one task and model against the first one.

    Attributes:
        where: task and model.
        base: the first method.
        judged: the others, in order.
    """

    where: str
    base: Cell
    judged: tuple[Judged, ...]


def families(found: Iterable[Cell]) -> list[Family]:
    """Compare each method with the first one; the comparisons on a task are paid for together, with all its models.

    Args:
        found: the cells of a study, in order.

    Returns:
        One for each task and model.
    """
    made = []
    for _, of_task in itertools.groupby(found, key=lambda cell: cell.task):
        members = [(f"{task}, {model}", group) for task, model, group in groups(list(of_task))]
        judged = judge([(group[0], other) for _, group in members for other in group[1:]])
        for where, group in members:
            against = tuple(one for one in judged if one.base is group[0])
            made.append(Family(where=where, base=group[0], judged=against))
    return made


def judge(candidates: Sequence[tuple[Cell, Cell]]) -> list[Judged]:
    """Compare methods; all comparisons are paid for together.

    Runs are compared in pairs where both methods have the same seeds, and else as two groups. Intervals are taken at
    the level 1 - .05/k for k comparisons, and the p values of each of the two tests adjusted by Holm's method.

    Args:
        candidates: for each comparison what the method is compared with, and the method.

    Returns:
        The judgements, in the order given.
    """
    found = [_compared(base, other, max(1, len(candidates))) for base, other in candidates]
    spread, failures = holm([one.spread_p for one in found]), holm([one.failures_p for one in found])
    return [
        replace(one, spread_adjusted=float(p), failures_adjusted=float(q))
        for one, p, q in zip(found, spread, failures, strict=True)
    ]


def _compared(base: Cell, other: Cell, comparisons: int) -> Judged:
    level, paired = 1 - ALPHA / comparisons, _same_seeds(base, other)
    judged = Judged(
        base=base,
        other=other,
        paired=paired,
        comparisons=comparisons,
        n=(0, 0),
        scores=None,
        spread_p=math.nan,
        failures_p=_failures_p(base, other, paired),
    )
    ours, theirs = _scores(judged)
    judged = replace(judged, n=(len(ours), len(theirs)))
    if min(judged.n) < FEWEST:
        return judged
    if paired:
        in_pairs = compare_paired(ours, theirs, confidence=level)
        return replace(judged, scores=in_pairs, spread_p=in_pairs.spread_p)
    apart = compare(ours, theirs, confidence=level)
    return replace(judged, scores=apart, spread_p=apart.brown_forsythe_p)


def _same_seeds(base: Cell, other: Cell) -> bool:
    """Whether the finished runs of both methods have the same draws."""
    return {run.spec.draw for run in base.finished} == {run.spec.draw for run in other.finished}


def _scores(judged: Judged) -> tuple[list[float], list[float]]:
    """Return the scores that are compared, the method's first; of pairs those of which both have one."""
    other, base = judged.other, judged.base
    if not judged.paired:
        return other.scores, base.scores
    ours, theirs = other.by_draw, base.by_draw
    both = [draw for draw in ours if draw in theirs]
    return [ours[draw] for draw in both], [theirs[draw] for draw in both]


def _failures(base: Cell, other: Cell, paired: bool) -> tuple[list[float], list[float]]:
    """Return 1 for each run that failed and 0 for the others; of pairs in the same order."""
    ours, theirs = ({run.spec.draw: float(run.outcome["failed"]) for run in cell.finished} for cell in (other, base))
    order = list(ours) if paired else list(theirs)
    return list(ours.values()), [theirs[draw] for draw in order]


def _failures_p(base: Cell, other: Cell, paired: bool) -> float:
    if min(len(base.finished), len(other.finished)) < FEWEST:
        return math.nan
    if paired:
        ours, theirs = _failures(base, other, paired)
        return compare_paired_failures([bool(bad) for bad in ours], [bool(bad) for bad in theirs])
    return compare_failures(len(other.failed), len(other.finished), len(base.failed), len(base.finished))
