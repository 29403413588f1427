"""Everything that a probe speaks for, in one value that can be printed, drawn and written."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from evenkeel.calibrate._arrays import Floats
from evenkeel.calibrate._learning_rate import LearningRate, learning_rate
from evenkeel.calibrate._probe import Probe
from evenkeel.calibrate._range_test import RangeTest, range_test
from evenkeel.calibrate._thresholds import RoleThreshold, role_thresholds
from evenkeel.calibrate._update_rules import UpdateRule, at_rate, budget_of_run, first_steps, median_ratios
from evenkeel.measure import Recorded

__all__ = ["DEFAULT_RULE", "Proposal", "propose"]

DEFAULT_RULE = "at-proposed-rate"  # a choice that no sweep has tested yet


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What is proposed, and what it was read from.

    Attributes:
        range_test: the range test.
        learning_rate: the proposed learning rate.
        quantile: of the norms, at which thresholds stand.
        thresholds: one for each role.
        ratios: relative step of the median component at each rate of the range test, over all seeds, shape ``[P]``.
        rules: what each rule says r should be, the default one first.
    """

    range_test: RangeTest
    learning_rate: LearningRate
    quantile: float
    thresholds: tuple[RoleThreshold, ...]
    ratios: Floats
    rules: tuple[UpdateRule, ...]

    @property
    def max_update(self) -> float:
        """The proposed r: that of the default rule, or of the next one that has something to say."""
        return next(rule.max_update for rule in self.rules if rule.max_update is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as plain JSON values; what is no number or infinite is None."""
        return {**_plain(dataclasses.asdict(self)), "default_rule": DEFAULT_RULE, "max_update": self.max_update}


def propose(found: Probe, *, quantile: float = 0.9, travel: float = 0.5) -> Proposal:
    """Read proposals from a probe.

    Args:
        found: the probe.
        quantile: of the norms at the constant rate, at which thresholds stand.
        travel: R of the rule ``budget``: how far a component may travel in a run, in norms of its weights.

    Returns:
        The proposals.

    Raises:
        MeasureError: if quantile or R cannot be, or the range test is too short.
    """
    test = range_test(found.rates, found.losses)
    rate = learning_rate(test)
    norms = np.concatenate([recorded.column("norm") for recorded in found.steady])
    points = len(test.rates)
    ratios = np.median([_ratios(recorded)[:points] for recorded in found.rising], axis=0)
    steady = np.stack([_ratios(recorded) for recorded in found.steady])
    rules = (
        at_rate(DEFAULT_RULE, rate.value, test.rates, ratios, "a step at the proposed learning rate"),
        at_rate("steepest-descent", test.steepest, test.rates, ratios, "a step at the rate of steepest descent"),
        at_rate("below-instability", test.stable, test.rates, ratios, "a step at the highest rate that is stable"),
        first_steps(found.reference, steady),
        budget_of_run(travel, found.budget.run),
    )
    return Proposal(
        range_test=test,
        learning_rate=rate,
        quantile=quantile,
        thresholds=tuple(role_thresholds(norms, found.steady[0].roles, quantile)),
        ratios=ratios,
        rules=rules,
    )


def _ratios(recorded: Recorded) -> Floats:
    updates, weights = recorded.column("update_norm"), recorded.column("weight_norm")
    return median_ratios(updates, weights, recorded.sizes.astype(np.float64))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(one) for one in (value.tolist() if isinstance(value, np.ndarray) else value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
