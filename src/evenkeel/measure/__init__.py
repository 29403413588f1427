"""What happened inside a model while it trained."""

from evenkeel.measure._norms import GradientNorms

__all__ = ["GradientNorms"]
