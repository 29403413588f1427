"""Clipping the gradient of every component on its own."""

from evenkeel.clipping._clip import ClipResult, clip_grad_norm_, grad_norms
from evenkeel.clipping._max_norm import MaxNorm, applicable, check_max_norm, resolve

__all__ = ["ClipResult", "MaxNorm", "applicable", "check_max_norm", "clip_grad_norm_", "grad_norms", "resolve"]
