"""When looking at a tensor's numbers is free, and when it is impossible."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["all_at_hand", "can_look"]


def can_look(tensor: Tensor) -> bool:
    """Say whether the numbers of a tensor are at hand: on the CPU, and not while tracing or with fake tensors.

    Args:
        tensor: made of the tensors in question.

    Returns:
        Whether to look.
    """
    return not torch.compiler.is_compiling() and tensor.is_cpu and type(tensor) is Tensor


def all_at_hand(tensors: Sequence[Tensor]) -> bool:
    """Say whether :func:`can_look` holds for every one of many tensors.

    Args:
        tensors: any.

    Returns:
        Whether to look at all of them.
    """
    if torch.compiler.is_compiling() or not all(tensor.is_cpu for tensor in tensors):
        return False
    return {type(tensor) for tensor in tensors} <= {Tensor}
