"""Optimizers with component-wise clipping inside, and clipping and stepping inside of backward."""

from evenkeel.optim._clipped_adamw import ClippedAdamW

__all__ = ["ClippedAdamW"]
