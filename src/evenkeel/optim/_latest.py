"""What the latest step of an optimizer was limited by, whichever way it limits."""

from __future__ import annotations

from torch.optim import Optimizer

from evenkeel.clipping import ClipResult
from evenkeel.optim._clipped import limiter_of
from evenkeel.optim._clipped_adamw import ClippedAdamW
from evenkeel.optim._in_backward import InBackward
from evenkeel.partition import Components

__all__ = ["latest_update"]


def latest_update(optimizer: Optimizer) -> tuple[ClipResult, Components] | None:
    """Return what an optimizer with ``max_update`` did in its latest step; nothing waits for the device.

    Args:
        optimizer: any: :class:`ClippedAdamW`, what :func:`clipped` or :func:`step_in_backward` returned, or another.

    Returns:
        The norms of the steps before they were limited, the norms that were allowed, and the coefficients; and the
        components that they belong to. None before the first step, and where nothing is limited.
    """
    if isinstance(optimizer, ClippedAdamW | InBackward):
        return None if optimizer.last_update is None else (optimizer.last_update, optimizer.parts)
    limiter = limiter_of(optimizer)
    return None if limiter is None or limiter.last is None else (limiter.last, limiter.parts)
