"""What a user wants to know of each method, in one sentence with its evidence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from evenkeel.report._judge import FEWEST, MOST, Family, Judged, families
from evenkeel.report._results import Cell, cells
from evenkeel.report._words import all_failed, number, p_value
from evenkeel.stats import describe
from evenkeel.study import Plan, RunRecord

__all__ = ["MethodVerdict", "verdicts", "verdicts_of"]


@dataclass(frozen=True, kw_only=True)
class MethodVerdict:
    """A method's verdict against the first one of the plan.

    Attributes:
        where: task and model.
        method: the method.
        tone: ``better`` or ``worse``, where something is shown to be; ``mixed``, where both are; else ``open``.
        text: the verdict with its evidence.
    """

    where: str
    method: str
    tone: Literal["better", "worse", "mixed", "open"]
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.method}: {self.text}"


def verdicts(plan: Plan, runs: Iterable[RunRecord]) -> list[MethodVerdict]:
    """Say of each method whether it is better, steadier or safer than the first one of the plan.

    Nothing is claimed that the test does not show, after adjustment for the number of comparisons. Where a difference
    is not shown, the number of seeds is told that would show one as large as the one seen, if there is such a number.

    Args:
        plan: the plan.
        runs: the runs of its store.

    Returns:
        One for each task, model and method but the first.
    """
    return verdicts_of(families(cells(plan, runs)))


def verdicts_of(judged: Sequence[Family]) -> list[MethodVerdict]:
    """Return what ``verdicts`` says, of comparisons that were made.

    Args:
        judged: the comparisons.

    Returns:
        One for each task, model and method but the first.
    """
    return [_verdict(family.where, one) for family in judged for one in family.judged]


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One thing that is compared: what is said of it, and whether that is good."""

    shown: bool
    good: bool
    text: str


def _verdict(where: str, judged: Judged) -> MethodVerdict:
    base, other = judged.base, judged.other
    if min(len(base.finished), len(other.finished)) < FEWEST:
        n = f"{len(other.finished)} and {len(base.finished)} runs"
        return MethodVerdict(
            where=where, method=other.method, tone="open",
            text=f"too few seeds to tell ({n}); take at least {FEWEST} of each, and about 30 to see a spread halved",
        )  # fmt: skip
    parts = [_of_mean(judged), _of_spread(judged), _of_failures(judged)]
    shown = [part for part in parts if part.shown]
    rest = [part for part in parts if not part.shown]
    goods = {part.good for part in shown}
    tone: Literal["better", "worse", "mixed", "open"] = (
        "open" if not shown else "mixed" if len(goods) == 2 else "better" if goods == {True} else "worse"
    )
    words = [part.text for part in (*shown, *rest)]
    if not shown:
        words[0] = f"not shown to differ from {base.method}: {words[0]}"
    return MethodVerdict(where=where, method=other.method, tone=tone, text="; ".join(words))


def _of_mean(judged: Judged) -> _Part:
    base, scores = judged.base, judged.scores
    if scores is None:
        return _Part(shown=False, good=False, text=f"too few scores to compare means ({judged.n[0]} and {judged.n[1]})")
    low, high = scores.difference_interval
    seen = f"{scores.difference:+.3f} {base.metric} on average, {_level(judged)} interval {low:+.3f} to {high:+.3f}"
    if judged.mean == "more":
        return _Part(shown=True, good=True, text=f"better than {base.method} ({seen})")
    if judged.mean == "less":
        return _Part(shown=True, good=False, text=f"worse than {base.method} ({seen})")
    if judged.mean == "not judged":
        return _Part(shown=False, good=False, text=f"means not judged, as scores do not vary ({seen})")
    return _Part(shown=False, good=False, text=f"not shown to be better or worse ({seen}{_more_seeds(judged, 'mean')})")


def _of_spread(judged: Judged) -> _Part:
    base, scores = judged.base, judged.scores
    if scores is None:
        return _Part(shown=False, good=False, text="nor spreads")
    stds = (
        f"std {_std(judged.other)} against {_std(base)}, Brown-Forsythe p {_p(judged.spread_p, judged.spread_adjusted)}"
    )
    if judged.spread == "less":
        return _Part(shown=True, good=True, text=f"steadier than {base.method} ({stds})")
    if judged.spread == "more":
        return _Part(shown=True, good=False, text=f"less steady than {base.method} ({stds})")
    if judged.all_failed:
        return _Part(shown=False, good=False, text=all_failed(judged.all_failed))
    if judged.spread == "not judged":
        return _Part(shown=False, good=False, text="its spread cannot be tested, as scores do not vary")
    text = f"not shown to be steadier or less steady ({stds}{_more_seeds(judged, 'spread')})"
    return _Part(shown=False, good=False, text=text)


def _of_failures(judged: Judged) -> _Part:
    base, other = judged.base, judged.other
    test = "McNemar" if judged.paired else "Fisher"
    counts = f"{len(other.failed)} of {len(other.finished)} runs against {len(base.failed)} of {len(base.finished)}"
    if not base.failed and not other.failed:
        return _Part(shown=False, good=False, text="no run failed with either")
    seen = f"{counts}, {test} p {_p(judged.failures_p, judged.failures_adjusted)}"
    if judged.failures == "less":
        return _Part(shown=True, good=True, text=f"fails less often ({seen})")
    if judged.failures == "more":
        return _Part(shown=True, good=False, text=f"fails more often ({seen})")
    more = _more_seeds(judged, "failures")
    return _Part(shown=False, good=False, text=f"not shown to fail more or less often ({seen}{more})")


def _more_seeds(judged: Judged, of: Literal["mean", "spread", "failures"]) -> str:
    """Say how many more seeds would do, were the difference as large as it looks."""
    if _alike(judged, of):
        return ""
    needed, n = judged.needed(of), max(judged.n) if of != "failures" else len(judged.other.finished)
    if needed is None:
        return f"; more than {MOST} seeds to tell"
    more = needed - n
    return f"; about {more} more seeds would tell" if more > 0 else "; a few more seeds would tell"


def _alike(judged: Judged, of: str) -> bool:
    """Whether not even the numbers differ."""
    if of == "failures":
        ours, theirs = judged.other, judged.base
        return len(ours.failed) * len(theirs.finished) == len(theirs.failed) * len(ours.finished)
    scores = judged.scores
    return scores is None or (scores.difference == 0 if of == "mean" else scores.std_ratio == 1)


def _level(judged: Judged) -> str:
    return "95 %" if judged.comparisons == 1 else f"{100 * (1 - 0.05 / judged.comparisons):.1f} %"


def _p(p: float, adjusted: float) -> str:
    return p_value(p if math.isnan(adjusted) else adjusted)


def _std(cell: Cell) -> str:
    return number(describe(cell.scores).std)
