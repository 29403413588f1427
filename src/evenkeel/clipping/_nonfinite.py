"""What becomes of components whose norm is NaN or infinite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from evenkeel.clipping.thresholds import Seen
from evenkeel.errors import GradientError

__all__ = ["Nonfinite", "check_nonfinite", "refuse_nonfinite", "without_nonfinite"]

Nonfinite = Literal["propagate", "zero", "error"]


def check_nonfinite(nonfinite: str) -> None:
    """Refuse what is no answer.

    Args:
        nonfinite: what the caller asked for.

    Raises:
        GradientError: if it is none of the three.
    """
    if nonfinite not in get_args(Nonfinite):
        raise GradientError(f"nonfinite must be 'propagate', 'zero' or 'error', but got {nonfinite!r}")


def refuse_nonfinite(norms: Tensor, names: Sequence[str]) -> None:
    """Name the components whose norm is not finite. This waits for the device.

    Args:
        norms: shape ``[C]``.
        names: the components' names, ``C`` of them.

    Raises:
        GradientError: if there are any.
    """
    culprits = [name for name, finite in zip(names, norms.isfinite().tolist(), strict=True) if not finite]
    if culprits:
        shown = ", ".join(culprits[:5]) + (f" and {len(culprits) - 5} more" if len(culprits) > 5 else "")
        raise GradientError(
            f"the gradient norm is not finite in {len(culprits)} of {len(norms)} components: {shown}; gradients are "
            "left as they were. Lower the learning rate, or pass nonfinite='zero' to leave such components out"
        )


def without_nonfinite(seen: Seen) -> Seen:
    """Show a threshold zeros for what will be zeros, so that one component does not spoil what it shares with others.

    Args:
        seen: the norms as they are.

    Returns:
        The same with 0 for what is not finite.
    """
    norms = seen.norms.masked_fill(~seen.norms.isfinite(), 0.0)
    whole = seen.whole  # where another stage's component is not finite, all stages are clipped to what is left here
    if whole is not None:
        whole = torch.where(whole.isfinite(), whole, replace(seen, norms=norms, whole=None).total_norm)
    return replace(seen, norms=norms, whole=whole)
