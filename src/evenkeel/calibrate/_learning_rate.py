"""The learning rate that a range test speaks for."""

from __future__ import annotations

from dataclasses import dataclass

from evenkeel.calibrate._range_test import RangeTest

__all__ = ["LearningRate", "learning_rate"]

_BELOW = 10.0  # times lower than the highest rate that is stable


@dataclass(frozen=True, kw_only=True)
class LearningRate:
    """A learning rate, and why.

    Attributes:
        value: the rate.
        reason: a sentence.
    """

    value: float
    reason: str


def learning_rate(found: RangeTest) -> LearningRate:
    """Propose the smaller of two rates: that of steepest descent, and a tenth of the highest that is stable.

    It is conservative because a range test spends one step on each rate, and a training hundreds near its peak: what
    carries one step need not carry those. Where the loss is not shown to fall, so that there is no steepest descent,
    the rate of the lowest loss takes its place, above which the loss only rises.

    Args:
        found: the range test.

    Returns:
        The rate, one of those of the test or a tenth of one, with its reason.
    """
    highest = found.stable / _BELOW
    edge = f"a tenth of {found.stable:.2g}, the highest rate before the loss rises" + (
        "" if found.rises else " (it never did: the test could go higher)"
    )
    if found.steepest is None:
        mark, why = found.lowest, "the lowest loss, since it is not shown to fall at all: more --seeds would tell"
    else:
        mark, why = found.steepest, "the steepest descent of the loss"
    if mark <= highest:
        return LearningRate(value=mark, reason=f"{why}; below {edge}")
    return LearningRate(value=highest, reason=f"{edge}; {why} is at {mark:.2g}")
