"""Thresholds that look at what training does."""

from evenkeel.clipping.thresholds._budget import Budget
from evenkeel.clipping.thresholds._capped_ema import CappedEma
from evenkeel.clipping.thresholds._ema import Ema
from evenkeel.clipping.thresholds._fixed import Fixed
from evenkeel.clipping.thresholds._grouped import Grouped
from evenkeel.clipping.thresholds._percentile import Percentile
from evenkeel.clipping.thresholds._records import Blank, Records
from evenkeel.clipping.thresholds._schedules import Cosine, Linear
from evenkeel.clipping.thresholds._threshold import EPSILON, Limits, Seen, Threshold
from evenkeel.clipping.thresholds._weight_relative import WeightRelative
from evenkeel.clipping.thresholds._zscore import ZScore

__all__ = [
    "EPSILON",
    "Blank",
    "Budget",
    "CappedEma",
    "Cosine",
    "Ema",
    "Fixed",
    "Grouped",
    "Limits",
    "Linear",
    "Percentile",
    "Records",
    "Seen",
    "Threshold",
    "WeightRelative",
    "ZScore",
]
