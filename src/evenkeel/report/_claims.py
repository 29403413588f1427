"""What Yang & Ma 2022 say of fine-tuning, put to the test by the runs of a study."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from evenkeel.report._judge import ALPHA, FEWEST, FEWEST_FOR_INTERVALS, Family, Judged
from evenkeel.report._judge import Verdict as Found
from evenkeel.report._movement import Movement, half_times
from evenkeel.report._movements import Movements
from evenkeel.report._results import Cell
from evenkeel.report._words import all_failed, p_value
from evenkeel.stats import compare_failures, compare_paired, concordance, trend, wilson
from evenkeel.study import RunRecord

__all__ = ["CLAIMS", "Claim", "ClaimVerdict", "claims"]

ClaimVerdict = Literal["held", "not shown", "contradicted", "cannot be told"]
CLAIMS = {
    "unstable": "with some seeds fine-tuning learns nothing",
    "racing": "components converge at speeds of their own",
    "order": "upper layers converge before lower ones",
    "vanishing": "where runs fail, gradients have vanished",
    "top-down": "going top-down scores lower",
    "top-down moves less": "going top-down changes the weights less",
    "top-down stays": "going top-down, the top layer moves less once others are released",
    "together": "clipping components brings their times together",
    "generalisation": "clipping components scores higher",
    "dose": "clipping components scores higher the lower the threshold",
    "convergence": "clipping components learns sooner",
    "steadier": "clipping components varies less over seeds",
    "safer": "clipping components fails less often",
}
_NAN = float("nan")
_ORDINARY = ("full", "bert-adam")
_OFF = re.compile(r"max_norm=\.?inf\b")
_THRESHOLD = re.compile(r"component-clip(?::max_norm=([\d.e+-]+|\.?inf))?")  # and no other option
_PUBLISHED = ".05"  # the method's default
_FEWEST_THRESHOLDS = 3
_RACING = ("racing", "half_time_spread")
_APART = "interquartile range of half times, share of training"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of the paper, on one task with one model and recipe.

    Attributes:
        where: task, model, and what differs in the recipe.
        claim: which, a key of ``CLAIMS``.
        method: the method that it is about; comparisons are with ``full``.
        verdict: ``held``, where a test shows it; ``contradicted``, where one shows the opposite; ``not shown``; or
            ``cannot be told``, where there is nothing to test it by.
        effect: how large it is, in the unit named; NaN where there is none.
        interval: a confidence interval of the effect; NaN where there is none.
        unit: what the effect is.
        test: the test and its p value, or what the interval is.
        n: runs, or pairs of runs with the same seed.
        reason: why it cannot be told; else empty.
    """

    where: str
    claim: str
    method: str
    verdict: ClaimVerdict
    effect: float = _NAN
    interval: tuple[float, float] = (_NAN, _NAN)
    unit: str = ""
    test: str = ""
    n: int = 0
    reason: str = ""


def claims(judged: Sequence[Family], movements: Movements) -> list[Claim]:
    """Judge the paper's claims that a study has runs for.

    Of a study whose first method is ``full``: instability, racing, going top-down (``gradual-unfreezing``) and clipping
    (``component-clip``, at each threshold). Comparisons are those of the report, paid for together on a task.

    Args:
        judged: the study's comparisons.
        movements: how the weights of its runs moved.

    Returns:
        The claims, by task, model and recipe.
    """
    return [claim for family in judged if _is(family.base, "full") for claim in _of_family(family, movements)]


def _of_family(family: Family, movements: Movements) -> Iterator[Claim]:
    where, base = family.where, family.base
    moved = movements.of(base)
    for cell in (base, *(one.other for one in family.judged)):
        if _is(cell, *_ORDINARY) and cell.finished:
            yield _unstable(where, cell)
    if base.finished:
        yield from _components(where, base, moved)
    for one in family.judged:
        if not one.other.finished or not base.finished:
            continue
        if _is(one.other, "gradual-unfreezing"):
            yield from _top_down(where, one, moved, movements.of(one.other))
        elif _is(one.other, "component-clip") and not _OFF.search(one.other.method):
            yield from _clipping(where, one)
    yield from _dose(where, [one.other for one in family.judged])


def _is(cell: Cell, *names: str) -> bool:
    """Whether a cell's method is one of these, with whatever options, and no mix."""
    return "+" not in cell.method and cell.method.partition(":")[0] in names


def _unstable(where: str, cell: Cell) -> Claim:
    failed, n = len(cell.failed), len(cell.finished)
    about: dict[str, Any] = {
        "where": where, "claim": "unstable", "method": cell.method, "effect": failed / n, "interval": wilson(failed, n),
        "unit": "share of failed runs", "test": "95 % interval (Wilson)", "n": n,
    }  # fmt: skip
    if n < FEWEST:
        return Claim(verdict="cannot be told", reason=f"{n} runs are too few", **about)
    if not _learns(cell):
        return Claim(verdict="cannot be told", reason=_NOTHING_LEARNT, **about)
    return Claim(verdict="held" if failed else "not shown", **about)


_NOTHING_LEARNT = f"no more runs beat chance than the {100 * ALPHA:.0f} % that do so by chance"


def _learns(cell: Cell) -> bool:
    """Whether more runs succeed than would by chance if none had learnt anything."""
    n = len(cell.finished)
    return n > 0 and wilson(n - len(cell.failed), n)[0] > ALPHA


_Moved = list[tuple[RunRecord, Movement]]


def _components(where: str, base: Cell, moved: _Moved) -> Iterator[Claim]:
    """Judge what is said of the components in ordinary fine-tuning, by the runs that learnt something."""
    about: dict[str, Any] = {"where": where, "method": base.method}
    good = [(run, movement) for run, movement in moved if not run.outcome["failed"]]
    if len(good) < FEWEST:
        reason = f"{len(good)} successful runs with telemetry are too few"
        yield from (Claim(claim=name, verdict="cannot be told", reason=reason, **about) for name in ("racing", "order"))
    else:
        found = concordance(half_times([movement for _, movement in good]))
        spreads = np.array([_number(run, *_RACING) for run, _ in good])
        spreads = spreads[np.isfinite(spreads)]
        told = not math.isnan(found.p)
        yield Claim(
            claim="racing", effect=float(spreads.mean()) if spreads.size else _NAN,
            interval=_of_mean(spreads, 1 - ALPHA), unit=_APART,
            test=f"Friedman p {p_value(found.p)}, Kendall's W {found.w:.2f}" if told else "", n=len(good),
            verdict=("held" if found.p <= ALPHA else "not shown") if told else "cannot be told",
            reason="" if told else "no component has a half time in every run", **about,
        )  # fmt: skip
        ranks = np.array([movement.layers_in_order for _, movement in good])
        yield _by_interval(ranks, -1, 1, claim="order", unit="rank correlation of half time with layer", **about)
    yield _vanishing(base.failed, [run for run in base.finished if not run.outcome["failed"]], about)


def _vanishing(bad: Sequence[RunRecord], good: Sequence[RunRecord], about: dict[str, Any]) -> Claim:
    told = [
        [vanished for run in runs if not math.isnan(vanished := _number(run, "health", "vanishing"))]
        for runs in (bad, good)
    ]
    n_bad, n_good = map(len, told)
    if not n_bad or not n_good:
        of = "failed" if not n_bad else "succeeded"
        return Claim(claim="vanishing", verdict="cannot be told", reason=f"no run {of}", n=n_bad + n_good, **about)
    k_bad, k_good = (int(sum(vanished)) for vanished in told)
    p = compare_failures(k_bad, n_bad, k_good, n_good)
    effect = k_bad / n_bad - k_good / n_good
    shown: ClaimVerdict = "held" if effect > 0 else "contradicted"
    return Claim(
        claim="vanishing", verdict=shown if p <= ALPHA else "not shown", effect=effect,
        unit=f"share with vanished gradients, failed runs ({k_bad} of {n_bad}) less others ({k_good} of {n_good})",
        test=f"Fisher p {p_value(p)}", n=n_bad + n_good, **about,
    )  # fmt: skip


def _top_down(where: str, one: Judged, base: _Moved, ours: _Moved) -> Iterator[Claim]:
    about: dict[str, Any] = {"where": where, "method": one.other.method}
    yield _of_judged(one, "mean", "less", claim="top-down", **about)
    theirs = {run.spec.draw: movement.layer_change for run, movement in base}
    pairs = [(movement.layer_change, theirs[run.spec.draw]) for run, movement in ours if run.spec.draw in theirs]
    changes = np.array([own - other for own, other in pairs])
    yield _by_interval(
        changes, -1, one.comparisons, claim="top-down moves less", power=True,
        unit="change of layers (root mean square, largest component), times that of full", **about,
    )  # fmt: skip
    again = np.array([movement.moved_again for _, movement in ours])
    yield _by_interval(
        again, -1, 1, claim="top-down stays", power=True,
        unit="change of the top layer in the last phase, times that in its first", **about,
    )  # fmt: skip


def _clipping(where: str, one: Judged) -> Iterator[Claim]:
    about: dict[str, Any] = {"where": where, "method": one.other.method}
    yield _of_record(one, *_RACING, claim="together", unit=_APART, **about)
    yield _of_judged(one, "mean", "more", claim="generalisation", **about)
    yield _of_record(one, "convergence", "loss_area", claim="convergence", unit="mean loss over training", **about)
    yield _of_judged(one, "spread", "less", claim="steadier", **about)
    yield _of_judged(one, "failures", "less", claim="safer", **about)


def _dose(where: str, others: Sequence[Cell]) -> Iterator[Claim]:
    """Judge whether scores fall as thresholds rise, over the seeds that have a score at each."""
    found = [(cell, _THRESHOLD.fullmatch(cell.method)) for cell in others]
    by_threshold = {float((match[1] or _PUBLISHED).replace(".inf", "inf")): cell for cell, match in found if match}
    if len(by_threshold) < _FEWEST_THRESHOLDS:
        return
    scores = [by_threshold[threshold].by_draw for threshold in sorted(by_threshold)]
    draws = [draw for draw in scores[0] if all(draw in one for one in scores)]
    about: dict[str, Any] = {
        "where": where, "claim": "dose", "method": "component-clip", "n": len(draws),
        "unit": f"rank correlation of score with threshold, {len(scores)} thresholds",
    }  # fmt: skip
    if len(draws) < FEWEST_FOR_INTERVALS:
        yield Claim(verdict="cannot be told", reason=f"{len(draws)} seeds have a score at each threshold", **about)
        return
    trended = trend([[one[draw] for one in scores] for draw in draws])
    effect = float(np.mean(trended.correlations))
    verdict: ClaimVerdict = "not shown" if trended.p > ALPHA else "held" if effect < 0 else "contradicted"
    interval = _of_mean(np.array(trended.correlations), 1 - ALPHA)
    yield Claim(verdict=verdict, effect=effect, interval=interval, test=f"sign flips p {p_value(trended.p)}", **about)


def _of_record(one: Judged, part: str, name: str, **about: Any) -> Claim:
    """Judge by a number in the runs' records that clipping is to make smaller."""
    ours, theirs = (
        {run.spec.draw: _number(run, part, name) for run in cell.finished} for cell in (one.other, one.base)
    )
    differences = np.array([ours[draw] - theirs[draw] for draw in ours if draw in theirs])
    return _by_interval(differences, -1, one.comparisons, **about)


def _number(run: RunRecord, part: str, name: str) -> float:
    """Return a number of a run's record; NaN where that does not tell."""
    found = run.outcome.get(part, {}).get(name)
    return _NAN if found is None else float(found)


def _by_interval(
    values: np.ndarray[Any, np.dtype[np.float64]], wanted: int, comparisons: int, *, power: bool = False, **about: Any
) -> Claim:
    """Judge by the interval of a mean whether it is above (``wanted`` 1) or below 0; logarithms are told as ratios."""
    values = values[np.isfinite(values)]
    n, level = len(values), 1 - ALPHA / comparisons
    if n < FEWEST_FOR_INTERVALS:
        return Claim(verdict="cannot be told", reason=f"{n} runs or pairs are too few", n=n, **about)
    low, high = _of_mean(values, level)
    verdict: ClaimVerdict = "not shown" if low <= 0 <= high else "held" if (low > 0) == (wanted > 0) else "contradicted"
    effect = float(values.mean())
    if power:
        effect, low, high = 10**effect, 10**low, 10**high
    test = f"{100 * level:.4g} % bootstrap interval"
    return Claim(verdict=verdict, effect=effect, interval=(low, high), test=test, n=n, **about)


def _of_mean(values: np.ndarray[Any, np.dtype[np.float64]], level: float) -> tuple[float, float]:
    return compare_paired(values, np.zeros_like(values), confidence=level).difference_interval


def _of_judged(one: Judged, of: Literal["mean", "spread", "failures"], wanted: Found, **about: Any) -> Claim:
    """Judge by a comparison of the report."""
    if not _learns(one.base) and not _learns(one.other):
        return Claim(verdict="cannot be told", reason=_NOTHING_LEARNT, n=len(one.other.finished), **about)
    found: Found = getattr(one, of)
    seen = _seen(one, of)
    if found in ("too few", "hint", "not judged"):
        unjudged = all_failed(one.all_failed) if one.all_failed else "scores do not vary"
        reason = unjudged if found == "not judged" else f"{min(one.n)} runs of each are too few"
        return Claim(verdict="cannot be told", reason=reason, **seen, **about)
    verdict: ClaimVerdict = "not shown" if found == "not shown" else "held" if found == wanted else "contradicted"
    return Claim(verdict=verdict, **seen, **about)


def _seen(one: Judged, of: str) -> dict[str, Any]:
    ours, theirs = one.other, one.base
    if of == "failures":
        test = "McNemar" if one.paired else "Fisher"
        return {
            "effect": len(ours.failed) / len(ours.finished) - len(theirs.failed) / len(theirs.finished),
            "unit": f"share of failed runs, {len(ours.failed)} of {len(ours.finished)} less "
            f"{len(theirs.failed)} of {len(theirs.finished)}",
            "test": "" if math.isnan(one.failures_p) else f"{test} p {p_value(one.failures_adjusted)}",
            "n": len(ours.finished),
        }
    if one.scores is None:
        return {"n": min(one.n)}
    if of == "mean":
        return {
            "effect": one.scores.difference, "interval": one.scores.difference_interval,
            "unit": f"{theirs.metric}, difference", "n": min(one.n),
            "test": f"{100 * one.scores.confidence:.4g} % bootstrap interval",
        }  # fmt: skip
    p = one.spread_adjusted
    test = "" if math.isnan(p) else f"Brown-Forsythe p {p_value(p)}"
    return {
        "effect": one.scores.std_ratio, "interval": one.scores.std_ratio_interval, "n": min(one.n),
        "unit": "standard deviation, times that of full", "test": test,
    }  # fmt: skip
