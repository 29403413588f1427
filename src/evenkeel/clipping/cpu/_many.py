"""Many tensors in one compiled call, and who may be in it."""

from __future__ import annotations

import functools
import importlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evenkeel.clipping.cpu._threads import share

__all__ = ["addresses", "available", "clip_", "distances", "norms", "readable", "reads", "scale_"]


@functools.cache
def available() -> bool:
    """Whether the extra ``cpu`` is installed.

    Returns:
        Whether there is Numba.
    """
    try:
        numba = importlib.import_module("numba")
    except Exception:  # whatever is wrong with it, torch's own operations do
        return False
    return not numba.config.DISABLE_JIT  # uncompiled functions follow no addresses


def reads(tensor: Tensor) -> bool:
    """Say whether the kernels can take a tensor: float32 entries of this process's memory, behind one another.

    Args:
        tensor: a gradient.

    Returns:
        Whether it may be given to the functions below.
    """
    kind = type(tensor)
    return (
        (kind is Tensor or kind is torch.nn.Parameter)
        and tensor.dtype is torch.float32
        and tensor.is_cpu
        and tensor.is_contiguous()
        and not tensor.is_neg()
        and (tensor.data_ptr() != 0 or not tensor.numel())  # a tensor may stand for zeros that are nowhere
    )


def readable(tensors: Sequence[Tensor]) -> list[int]:
    """Return which tensors the kernels can take together: several threads must not work on the same memory.

    Args:
        tensors: gradients; autograd may hand out one and the same for two parameters.

    Returns:
        Places in ``tensors``, in order.
    """
    found = [(index, tensor.data_ptr()) for index, tensor in enumerate(tensors) if reads(tensor)]
    number = Counter(address for _, address in found)
    return [index for index, address in found if number[address] == 1 or not address]


def addresses(tensors: Sequence[Tensor]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return where tensors begin.

    Args:
        tensors: ``T`` tensors, which must live as long as the addresses are used.

    Returns:
        Addresses, shape ``[T]``.
    """
    return np.array([tensor.data_ptr() for tensor in tensors], dtype=np.int64)


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the 2-norm of every tensor: float32 squares in blocks, joined in float64.

    Args:
        tensors: such as :func:`reads` allows.

    Returns:
        Norms, float64, shape ``[len(tensors)]``, the same whatever the number of threads.
    """
    sums = np.empty(len(tensors))
    _run("square_sums", tensors, sums)
    return torch.from_numpy(np.sqrt(sums))


def distances(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Return the 2-norm of what every tensor differs by from another one; the differences are written nowhere.

    Args:
        tensors: such as :func:`reads` allows.
        others: as many, of the same shapes, such as :func:`reads` allows.

    Returns:
        Norms, float64, shape ``[len(tensors)]``, the same whatever the number of threads.
    """
    sums = np.empty(len(tensors))
    _run("difference_sums", tensors, addresses(others), sums)
    return torch.from_numpy(np.sqrt(sums))


def scale_(tensors: Sequence[Tensor], factors: Tensor) -> None:
    """Multiply every tensor by its factor, in place; where it is exactly 1 entries are neither read nor written.

    Args:
        tensors: such as :func:`reads` allows, none of which share memory.
        factors: float32, shape ``[len(tensors)]``, on the CPU.
    """
    _run("scale", tensors, factors.numpy())
    torch.autograd.graph.increment_version(tensors)  # as PyTorch's own operations in place do


def clip_(tensors: Sequence[Tensor], limits: Tensor, *, silence: bool, epsilon: float) -> Tensor:
    """Clip every tensor to its own limit, in place, reading it from memory once.

    Args:
        tensors: such as :func:`reads` allows, none of which share memory.
        limits: the norms allowed, float32, shape ``[len(tensors)]``; infinity leaves a tensor alone.
        silence: whether tensors whose norm is not finite become zeros.
        epsilon: what is added to a norm before a limit is divided by it.

    Returns:
        The norms before clipping, float32, shape ``[len(tensors)]``.
    """
    before, changed = np.empty(len(tensors), dtype=np.float32), np.zeros(len(tensors), dtype=np.bool_)
    _run("clip", tensors, limits.numpy(), before, changed, silence, np.float32(epsilon))
    torch.autograd.graph.increment_version([tensors[index] for index in changed.nonzero()[0].tolist()])
    return torch.from_numpy(before)


def _run(kernel: str, tensors: Sequence[Tensor], *arguments: Any) -> None:
    function = getattr(importlib.import_module("evenkeel.clipping.cpu._kernels"), kernel)
    counts = np.array([tensor.numel() for tensor in tensors], dtype=np.int64)
    share(function, counts, addresses(tensors), counts, *arguments)
