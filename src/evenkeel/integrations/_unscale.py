"""Dividing an fp16 loss scale out of the gradients, once."""

from __future__ import annotations

from typing import Any

__all__ = ["divide_out", "unscale"]


def unscale(optimizer: Any) -> None:
    """Make the gradients what the optimizer will see: divide an fp16 loss scale out, once.

    Args:
        optimizer: Accelerate's wrapper, which knows the scaler; any other optimizer has none.
    """
    divide_out(getattr(optimizer, "scaler", None), getattr(optimizer, "optimizer", optimizer))


def divide_out(scaler: Any, optimizer: Any) -> None:
    """Divide the scale of ``scaler`` out of the gradients of ``optimizer``, unless that was done in this step.

    Args:
        scaler: torch's ``GradScaler``, or None.
        optimizer: the optimizer itself, without wrappers.
    """
    if scaler is None or not scaler.is_enabled():
        return
    try:
        scaler.unscale_(optimizer)
    except RuntimeError as error:
        # Some frameworks unscale before they call us; doing it twice would be wrong and is refused.
        if "already been called" not in str(error):
            raise
