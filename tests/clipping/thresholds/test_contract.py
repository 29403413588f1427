"""Every threshold of ours keeps to the contract that users' own ones are tested against.

For the second tier are those that are another one of them in other settings.
"""

from __future__ import annotations

import math

import pytest

from evenkeel.clipping.thresholds import (
    Budget,
    CappedEma,
    Cosine,
    Ema,
    Fixed,
    Grouped,
    Linear,
    Percentile,
    Threshold,
    WeightRelative,
    ZScore,
)
from evenkeel.testing import ThresholdContract

pytestmark = (
    pytest.mark.no_cover
)  # tracing would double its time, for lines that the tests of each threshold go through


class TestFixed(ThresholdContract):
    of_places = True

    def make(self) -> Threshold:
        return Fixed((0.5, 1.0, math.inf, 2.0))


class TestLinear(ThresholdContract):
    counts_steps = True

    def make(self) -> Threshold:
        return Linear(0.1, 2.0, steps=50)


@pytest.mark.slow
class TestCosine(ThresholdContract):
    counts_steps = True

    def make(self) -> Threshold:
        return Cosine(2.0, 0.1, steps=50)


class TestBudgetBySize(ThresholdContract):
    def make(self) -> Threshold:
        return Budget(1.5)


@pytest.mark.slow
class TestBudgetEqual(ThresholdContract):
    def make(self) -> Threshold:
        return Budget(1.5, share="equal")


class TestWeightRelative(ThresholdContract):
    def make(self) -> Threshold:
        return WeightRelative(0.1)


@pytest.mark.slow
class TestWeightRelativeWithAComponentLeftAlone(ThresholdContract):
    def make(self) -> Threshold:
        return WeightRelative(0.1, unclipped=("2.bias",))


class TestEma(ThresholdContract):
    def make(self) -> Threshold:
        return Ema(beta=0.9, warmup=0)


@pytest.mark.slow
class TestEmaAfterItsWarmUp(ThresholdContract):
    def make(self) -> Threshold:
        return Ema(beta=0.9, warmup=10)


class TestCappedEma(ThresholdContract):
    counts_steps = True

    def make(self) -> Threshold:
        return CappedEma(total_steps=60)


class TestPercentile(ThresholdContract):
    def make(self) -> Threshold:
        return Percentile(30, window=16)


class TestZScore(ThresholdContract):
    def make(self) -> Threshold:
        return ZScore(1.5, alpha=0.9, warmup=6)


class TestAutoClip(ThresholdContract):
    def make(self) -> Threshold:
        return Grouped(Percentile(10), by="global")


@pytest.mark.slow
class TestZClip(ThresholdContract):
    def make(self) -> Threshold:
        return Grouped(ZScore(alpha=0.9, warmup=6), by="global")


@pytest.mark.slow
class TestAggc(ThresholdContract):
    def make(self) -> Threshold:
        return Grouped(CappedEma(), by="role")


@pytest.mark.slow
class TestAdaGcByModule(ThresholdContract):
    def make(self) -> Threshold:
        return Grouped(Ema(warmup=5), by="module")


class TestGroupsRelativeToTheirWeights(ThresholdContract):
    def make(self) -> Threshold:
        return Grouped(WeightRelative(0.1), by=by_kind)


def by_kind(part: object) -> str:
    """On the module's level, so that it can be pickled."""
    return str(getattr(part, "kind", None))
