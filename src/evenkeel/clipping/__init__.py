"""Clipping the gradient of every component on its own."""

from evenkeel.clipping._clip import ClipResult, clip_grad_norm_, grad_norms
from evenkeel.clipping._max_norm import MaxNorm, check_max_norm

__all__ = ["ClipResult", "MaxNorm", "check_max_norm", "clip_grad_norm_", "grad_norms"]
