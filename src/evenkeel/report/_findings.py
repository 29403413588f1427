"""What a study found, in sentences that claim no more than a test shows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evenkeel.report._judge import ALPHA, FEWEST, FEWEST_FOR_INTERVALS, Family, Judged, families
from evenkeel.report._results import Cell, cells
from evenkeel.report._words import all_failed, number, p_value, percent, standing
from evenkeel.stats import Comparison, PairedComparison, wilson
from evenkeel.study import Plan, RunRecord

__all__ = ["Finding", "find", "findings", "how_tested", "progress"]

NOT_SHOWN = "not shown to differ"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One sentence.

    Attributes:
        where: the task and the model; empty for a sentence about the whole study.
        about: the method, or the two that are compared; empty likewise.
        text: the sentence.
    """

    where: str = ""
    about: str = ""
    text: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.about, self.text) if part)


def findings(plan: Plan, runs: Iterable[RunRecord]) -> list[str]:
    """Say what a study found: each method against the first one of the plan.

    Means are compared by the bootstrap interval of their difference, spreads by the Brown-Forsythe test, failures by
    Fisher's exact test; where both methods have the same seeds all of that in pairs, and failures by McNemar's test.
    With k comparisons on a task, intervals are taken at the level 1 - .05/k and the p values of each of the two tests
    are adjusted by Holm's method.

    Args:
        plan: the plan.
        runs: the runs of its store.

    Returns:
        Plain sentences: how many runs have a result, then for each task and model what was found. With fewer than five
        runs of a method they say that nothing can be told.

    Example:
        >>> from evenkeel.study import Plan
        >>> findings(Plan(tasks=[{"name": "rte"}], seeds=3), [])
        ['No run was started yet.']
    """
    runs = list(runs)
    return [str(finding) for finding in find(runs, families(cells(plan, runs)))]


def find(runs: Sequence[RunRecord], judged: Sequence[Family]) -> list[Finding]:
    """Return what ``findings`` says, with the place that each sentence is about.

    Args:
        runs: the runs of a study.
        judged: their comparisons.

    Returns:
        The findings.
    """
    found = [Finding(text=progress(runs))]
    for family in judged:
        found.append(Finding(where=family.where, about=family.base.method, text=_alone(family.base)))
        for one in family.judged:
            about = f"{one.other.method} against {one.base.method}"
            found += [Finding(where=family.where, about=about, text=text) for text in _compared(one)]
    return found


def how_tested() -> str:
    """Explain the tests in plain words."""
    return (
        f"A difference is claimed only where a test shows it at the level {ALPHA}: of means, where the bootstrap "
        f"interval leaves out 0 and both methods have at least {FEWEST_FOR_INTERVALS} scores (with fewer, such "
        "intervals are too narrow); of spreads, by the Brown-Forsythe test; of failures, by Fisher's exact test. "
        "Runs of two methods that have the same seeds are compared in pairs: their differences by the bootstrap, "
        "spreads by the Brown-Forsythe test for pairs, failures by McNemar's exact test. "
        "Several comparisons on one task are paid for: intervals are widened to hold together at 95 %, and p values "
        "are adjusted by Holm's method. 'Not shown to differ' does not mean equal: to see a standard deviation halved "
        "takes about 30 runs of each method."
    )


def progress(runs: Sequence[RunRecord]) -> str:
    """Say how many runs have a result.

    Args:
        runs: the runs of a study.

    Returns:
        A sentence.
    """
    done = sum(run.finished for run in runs)
    if not runs:
        return "No run was started yet."
    if done == len(runs):
        return f"All {done} runs have a result." if done > 1 else "The only run has a result."
    return f"{done} of {len(runs)} runs have a result ({standing(runs)}); what is found here may still change."


def _alone(cell: Cell) -> str:
    n, bad = len(cell.finished), len(cell.failed)
    if not n:
        return "no result yet, and it is what other methods are compared with."
    low, high = wilson(bad, n)
    diverged = sum(run.status == "diverged" for run in cell.finished)
    also = f", {diverged} of them diverged" if diverged else ""
    return f"failed runs {bad} of {n}{also} (95 % interval {percent(low)} to {percent(high)})."


def _compared(judged: Judged) -> list[str]:
    other, base = judged.other, judged.base
    if not other.finished or not base.finished:
        missing = other.method if not other.finished else base.method
        return [f"{missing} has no result yet."]
    counts = f"{len(other.failed)} of {len(other.finished)} against {len(base.failed)} of {len(base.finished)}"
    sentences = _of_scores(judged)
    if judged.failures == "too few":
        n = f"{len(other.finished)} and {len(base.finished)}"
        sentences.append(f"failed runs {counts}: {n} runs are too few to tell; take at least {FEWEST} of each.")
    else:
        said = {"less": "fails less often", "more": "fails more often"}.get(judged.failures, NOT_SHOWN)
        test = "McNemar" if judged.paired else "Fisher"
        p = _tested(test, judged.failures_p, judged.failures_adjusted, judged.comparisons)
        sentences.append(f"failed runs {counts} ({p}): {said}.")
    return sentences


def _of_scores(judged: Judged) -> list[str]:
    """Compare mean and spread."""
    other, base, scores = judged.other, judged.base, judged.scores
    n, n_base = len(other.scored), len(base.scored)
    if not n or not n_base:
        return [f"no scores to compare: all runs of {other.method if not n else base.method} diverged."]
    lost = len(other.finished) + len(base.finished) - n - n_base
    left_out = f" ({lost} diverged {'run' if lost == 1 else 'runs'} without a score left out)" if lost else ""
    means = f"mean {base.metric} {_mean(other)} against {_mean(base)}{left_out}"
    if scores is None:
        return [f"{means}, from {n} and {n_base} scores: too few to tell; take at least {FEWEST} of each."]
    low, high = scores.difference_interval
    level = "95 % interval" if judged.comparisons == 1 else f"{100 * scores.confidence:.1f} % interval"
    pairs = f" over {judged.n[0]} pairs" if judged.paired else ""
    difference = f"difference {scores.difference:+.3f}{pairs} ({level} {low:+.3f} to {high:+.3f})"
    return [f"{means}, {difference}: {_mean_verdict(judged)}.", _spread(judged, scores, level)]


def _mean_verdict(judged: Judged) -> str:
    return {
        "not judged": "not judged, as the scores of a method are all equal and the interval is too narrow",
        "hint": f"a hint and no proof, as such an interval is too narrow below {FEWEST_FOR_INTERVALS} runs of each",
        "more": "higher",
        "less": "lower",
    }.get(judged.mean, NOT_SHOWN)


def _spread(judged: Judged, scores: Comparison | PairedComparison, level: str) -> str:
    other, base = judged.other, judged.base
    ratio = f"ratio of standard deviations {number(scores.std_ratio, 2)}"
    if scores.std_ratio in (0.0, math.inf):
        ratio += f", as all scores of {other.method if scores.std_ratio == 0 else base.method} are equal"
    else:
        low, high = scores.std_ratio_interval
        ratio += f" ({level} {number(low, 2)} to {number(high, 2)})"
    if judged.all_failed:
        return f"{ratio}: {all_failed(judged.all_failed)}."
    if judged.spread == "not judged":
        return f"{ratio}: the Brown-Forsythe test cannot be made on such scores."
    said = {"less": "steadier", "more": "less steady"}.get(judged.spread, NOT_SHOWN)
    test = _tested("Brown-Forsythe", judged.spread_p, judged.spread_adjusted, judged.comparisons)
    return f"{ratio}, {test}: {said}."


def _tested(test: str, p: float, adjusted: float, comparisons: int) -> str:
    after = f", adjusted for {comparisons} comparisons {p_value(adjusted)}" if comparisons > 1 else ""
    return f"{test} p {p_value(p)}{after}"


def _mean(cell: Cell) -> str:
    return number(sum(cell.scores) / len(cell.scores))
