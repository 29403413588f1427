"""When looking at a tensor's numbers is free, and when it is impossible."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["can_look"]


def can_look(tensor: Tensor) -> bool:
    """Say whether the numbers of a tensor are at hand: on the CPU, and not while tracing or with fake tensors.

    Args:
        tensor: made of the tensors in question.

    Returns:
        Whether to look.
    """
    return not torch.compiler.is_compiling() and tensor.is_cpu and type(tensor) is Tensor
