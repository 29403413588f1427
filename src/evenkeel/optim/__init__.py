"""Optimizers with component-wise clipping inside, and clipping and stepping inside of backward."""

from evenkeel.optim._clipped import clipped
from evenkeel.optim._clipped_adamw import ClippedAdamW
from evenkeel.optim._in_backward import InBackward, step_in_backward

__all__ = ["ClippedAdamW", "InBackward", "clipped", "step_in_backward"]
