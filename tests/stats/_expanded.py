"""Expanded percentile intervals, written a second time."""

from __future__ import annotations

import math

from scipy import stats

__all__ = ["cut_off"]


def cut_off(level: float, n: int) -> float:
    """The share of resamples that lies beyond either end of an interval."""
    return float(stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.isf((1 - level) / 2, n - 1)))
