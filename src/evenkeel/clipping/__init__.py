"""Clipping the gradient of every component on its own."""

from evenkeel.clipping import thresholds
from evenkeel.clipping._clip import check_norm_type, clip_coefficients, clip_grad_norm_, grad_norms
from evenkeel.clipping._functional import clip_grads
from evenkeel.clipping._max_norm import MaxNorm, applicable, as_threshold, check_max_norm, resolve
from evenkeel.clipping._nonfinite import Nonfinite, check_nonfinite
from evenkeel.clipping._result import ClipResult
from evenkeel.clipping._statistics import ClipStatistics
from evenkeel.clipping._weights import (
    WeightCopies,
    copied_norms,
    copy_weights,
    weight_distances,
    weight_names,
    weight_norms,
)

__all__ = [
    "ClipResult",
    "ClipStatistics",
    "MaxNorm",
    "Nonfinite",
    "WeightCopies",
    "applicable",
    "as_threshold",
    "check_max_norm",
    "check_nonfinite",
    "check_norm_type",
    "clip_coefficients",
    "clip_grad_norm_",
    "clip_grads",
    "copied_norms",
    "copy_weights",
    "grad_norms",
    "resolve",
    "thresholds",
    "weight_distances",
    "weight_names",
    "weight_norms",
]
