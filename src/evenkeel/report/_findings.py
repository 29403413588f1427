"""What a study found, in sentences that claim no more than a test shows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evenkeel.report._results import Cell, cells, groups
from evenkeel.report._words import number, p_value, percent, standing
from evenkeel.stats import Comparison, compare, compare_failures, holm, wilson
from evenkeel.study import Plan, RunRecord

__all__ = ["Finding", "find", "findings", "how_tested"]

ALPHA = 0.05
FEWEST = 5  # runs of each method, below which nothing is tested
FEWEST_FOR_INTERVALS = 10  # below it a bootstrap interval of a mean is too narrow to claim a difference from
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


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """A method, what it is compared with, and what the scores say; NaN for a test that was not made."""

    other: Cell
    base: Cell
    scores: Comparison | None
    failures_p: float

    @property
    def spread_p(self) -> float:
        return self.scores.brown_forsythe_p if self.scores else float("nan")


def findings(plan: Plan, runs: Iterable[RunRecord]) -> list[str]:
    """Say what a study found: each method against the first one of the plan.

    Means are compared by the bootstrap interval of their difference, spreads by the Brown-Forsythe test, failures by
    Fisher's exact test. With k comparisons on a task, intervals are taken at the level 1 - .05/k and the p values of
    each of the two tests are adjusted by Holm's method.

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
    return [str(finding) for finding in find(plan, runs)]


def find(plan: Plan, runs: Iterable[RunRecord]) -> list[Finding]:
    """Return what ``findings`` says, with the place that each sentence is about.

    Args:
        plan: the plan.
        runs: the runs of its store.

    Returns:
        The findings.
    """
    runs = list(runs)
    found = [Finding(text=_progress(runs))]
    for _, of_task in itertools.groupby(cells(plan, runs), key=lambda cell: cell.task):
        found += _of_task(list(of_task))
    return found


def how_tested() -> str:
    """Explain the tests in plain words."""
    return (
        f"A difference is claimed only where a test shows it at the level {ALPHA}: of means, where the bootstrap "
        f"interval leaves out 0 and both methods have at least {FEWEST_FOR_INTERVALS} scores (with fewer, such "
        "intervals are too narrow); of spreads, by the Brown-Forsythe test; of failures, by Fisher's exact test. "
        "Several comparisons on one task are paid for: intervals are widened to hold together at 95 %, and p values "
        "are adjusted by Holm's method. 'Not shown to differ' does not mean equal: to see a standard deviation halved "
        "takes about 30 runs of each method."
    )


def _progress(runs: Sequence[RunRecord]) -> str:
    done = sum(run.finished for run in runs)
    if not runs:
        return "No run was started yet."
    if done == len(runs):
        return f"All {done} runs have a result." if done > 1 else "The only run has a result."
    return f"{done} of {len(runs)} runs have a result ({standing(runs)}); what is found here may still change."


def _of_task(members: Sequence[Cell]) -> list[Finding]:
    """Compare on one task; the comparisons with all its models are adjusted together."""
    families = [(f"{task}, {model}", group) for task, model, group in groups(members)]
    pairs = _pairs([(group[0], other) for _, group in families for other in group[1:]])
    spread = dict(zip(map(id, pairs), holm([pair.spread_p for pair in pairs]), strict=True))
    failure = dict(zip(map(id, pairs), holm([pair.failures_p for pair in pairs]), strict=True))
    found = []
    for where, group in families:
        found.append(Finding(where=where, about=group[0].method, text=_alone(group[0])))
        for pair in pairs:
            if pair.base is group[0]:
                about = f"{pair.other.method} against {pair.base.method}"
                sentences = _compared(pair, float(spread[id(pair)]), float(failure[id(pair)]), len(pairs))
                found += [Finding(where=where, about=about, text=text) for text in sentences]
    return found


def _pairs(candidates: Sequence[tuple[Cell, Cell]]) -> list[_Pair]:
    level = 1 - ALPHA / max(1, len(candidates))
    pairs = []
    for base, other in candidates:
        enough = min(len(base.scored), len(other.scored)) >= FEWEST
        judged = min(len(base.finished), len(other.finished)) >= FEWEST
        pairs.append(
            _Pair(
                other=other,
                base=base,
                scores=compare(other.scores, base.scores, confidence=level) if enough else None,
                failures_p=compare_failures(
                    len(other.failed), len(other.finished), len(base.failed), len(base.finished)
                )
                if judged
                else float("nan"),
            )
        )
    return pairs


def _alone(cell: Cell) -> str:
    n, bad = len(cell.finished), len(cell.failed)
    if not n:
        return "no result yet, and it is what other methods are compared with."
    low, high = wilson(bad, n)
    diverged = sum(run.status == "diverged" for run in cell.finished)
    also = f", {diverged} of them diverged" if diverged else ""
    return f"failed runs {bad} of {n}{also} (95 % interval {percent(low)} to {percent(high)})."


def _compared(pair: _Pair, spread_p: float, failures_p: float, comparisons: int) -> list[str]:
    other, base = pair.other, pair.base
    if not other.finished or not base.finished:
        missing = other.method if not other.finished else base.method
        return [f"{missing} has no result yet."]
    counts = f"{len(other.failed)} of {len(other.finished)} against {len(base.failed)} of {len(base.finished)}"
    sentences = _of_scores(pair, spread_p, comparisons)
    if math.isnan(pair.failures_p):
        n = f"{len(other.finished)} and {len(base.finished)}"
        sentences.append(f"failed runs {counts}: {n} runs are too few to tell; take at least {FEWEST} of each.")
    else:
        fewer = len(other.failed) * len(base.finished) < len(base.failed) * len(other.finished)
        verdict = ("fails less often" if fewer else "fails more often") if failures_p <= ALPHA else NOT_SHOWN
        p = _tested("Fisher", pair.failures_p, failures_p, comparisons)
        sentences.append(f"failed runs {counts} ({p}): {verdict}.")
    return sentences


def _of_scores(pair: _Pair, spread_p: float, comparisons: int) -> list[str]:
    """Compare mean and spread."""
    other, base, scores = pair.other, pair.base, pair.scores
    n, n_base = len(other.scored), len(base.scored)
    if not n or not n_base:
        return [f"no scores to compare: all runs of {other.method if not n else base.method} diverged."]
    lost = len(other.finished) + len(base.finished) - n - n_base
    left_out = f" ({lost} diverged {'run' if lost == 1 else 'runs'} without a score left out)" if lost else ""
    means = f"mean {base.metric} {_mean(other)} against {_mean(base)}{left_out}"
    if scores is None:
        return [f"{means}, from {n} and {n_base} scores: too few to tell; take at least {FEWEST} of each."]
    low, high = scores.difference_interval
    level = "95 % interval" if comparisons == 1 else f"{100 * scores.confidence:.1f} % interval"
    difference = f"difference {scores.difference:+.3f} ({level} {low:+.3f} to {high:+.3f})"
    return [f"{means}, {difference}: {_mean_verdict(scores)}.", _spread(pair, scores, spread_p, comparisons, level)]


def _mean_verdict(scores: Comparison) -> str:
    low, high = scores.difference_interval
    if low <= 0 <= high:
        return NOT_SHOWN
    if scores.std_ratio in (0.0, math.inf) or low == high:
        return "not judged, as the scores of a method are all equal and the interval is too narrow"
    if min(scores.n_a, scores.n_b) < FEWEST_FOR_INTERVALS:
        return f"a hint and no proof, as such an interval is too narrow below {FEWEST_FOR_INTERVALS} runs of each"
    return "higher" if low > 0 else "lower"


def _spread(pair: _Pair, scores: Comparison, adjusted: float, comparisons: int, level: str) -> str:
    other, base = pair.other, pair.base
    ratio = f"ratio of standard deviations {number(scores.std_ratio, 2)}"
    if scores.std_ratio in (0.0, math.inf):
        ratio += f", as all scores of {other.method if scores.std_ratio == 0 else base.method} are equal"
    else:
        low, high = scores.std_ratio_interval
        ratio += f" ({level} {number(low, 2)} to {number(high, 2)})"
    if math.isnan(adjusted):
        return f"{ratio}: the Brown-Forsythe test cannot be made on such scores."
    verdict = ("steadier" if scores.std_ratio < 1 else "less steady") if adjusted <= ALPHA else NOT_SHOWN
    return f"{ratio}, {_tested('Brown-Forsythe', scores.brown_forsythe_p, adjusted, comparisons)}: {verdict}."


def _tested(test: str, p: float, adjusted: float, comparisons: int) -> str:
    after = f", adjusted for {comparisons} comparisons {p_value(adjusted)}" if comparisons > 1 else ""
    return f"{test} p {p_value(p)}{after}"


def _mean(cell: Cell) -> str:
    return number(sum(cell.scores) / len(cell.scores))
