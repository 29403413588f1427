"""What happened inside a model while it trained."""

from evenkeel.measure._norms import GradientNorms
from evenkeel.measure._replacement import layer_replacement, layer_weights

__all__ = ["GradientNorms", "layer_replacement", "layer_weights"]
