"""Optimizers with component-wise clipping inside, and clipping and stepping inside of backward."""

from evenkeel.optim._clipped import clipped
from evenkeel.optim._clipped_adamw import ClippedAdamW
from evenkeel.optim._in_backward import InBackward, step_in_backward
from evenkeel.optim._lamb import Lamb
from evenkeel.optim._latest import latest_update
from evenkeel.optim._max_update import MaxUpdate, UpdateLimit
from evenkeel.optim._stable_adamw import StableAdamW

__all__ = [
    "ClippedAdamW",
    "InBackward",
    "Lamb",
    "MaxUpdate",
    "StableAdamW",
    "UpdateLimit",
    "clipped",
    "latest_update",
    "step_in_backward",
]
