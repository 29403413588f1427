"""Updates of many tensors in one compiled call."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evenkeel.clipping.cpu import addresses, share
from evenkeel.clipping.thresholds import EPSILON
from evenkeel.optim._jobs import Jobs

__all__ = ["clip_and_update_", "limit_and_update_", "update_"]


def update_(jobs: Jobs, factors: Tensor, silenced: Tensor, numbers: Sequence[tuple[float, ...]]) -> None:
    """Update the tensors of ``jobs``, in place; their gradients are read.

    Args:
        jobs: ``T`` tensors with gradient and moments, all such as ``evenkeel.clipping.cpu.reads`` allows.
        factors: what the gradients are multiplied by, float32, shape ``[T]``.
        silenced: booleans of shape ``[T]``: whose gradients count as zeros, whatever they hold.
        numbers: what ``evenkeel.optim._numbers`` says, for each of the jobs' settings.
    """
    _run("update", jobs, factors.numpy(), silenced.numpy(), *_settings(jobs, numbers))


def clip_and_update_(
    jobs: Jobs, limits: Tensor, gains: Tensor, numbers: Sequence[tuple[float, ...]], *, silence: bool
) -> Tensor:
    """Update the tensors of ``jobs`` as with gradients clipped one by one, which are read from memory once.

    Args:
        jobs: as for :func:`update_`.
        limits: the norms that gradients may have, float32, shape ``[T]``; infinity clips nothing.
        gains: what gradients are multiplied by before they count, float32, shape ``[T]``.
        numbers: as for :func:`update_`.
        silence: whether a gradient whose norm is not finite counts as zeros.

    Returns:
        The gradients' norms before clipping, float32, shape ``[T]``.
    """
    norms = np.empty(len(limits), dtype=np.float32)
    fixed = (limits.numpy(), norms, gains.numpy(), silence, np.float32(EPSILON))
    _run("clip_and_update", jobs, *fixed, *_settings(jobs, numbers))
    return torch.from_numpy(norms)


def limit_and_update_(
    jobs: Jobs,
    limits: Tensor,
    gains: Tensor,
    numbers: Sequence[tuple[float, ...]],
    *,
    silence: bool,
    shares: Tensor,
    floors: Tensor,
) -> tuple[Tensor, Tensor]:
    """Update the tensors of ``jobs`` as :func:`clip_and_update_` does, by steps that are limited by the weights.

    Args:
        jobs: as for :func:`update_`.
        limits: as for :func:`clip_and_update_`.
        gains: as for :func:`clip_and_update_`.
        numbers: eight for each of the jobs' settings, see ``_limiting``.
        silence: as for :func:`clip_and_update_`.
        shares: how far a step may go, relative to the weights' norm and the floor, float64, shape ``[T]``.
        floors: what is added to the weights' norms, float64, shape ``[T]``.

    Returns:
        The gradients' norms before clipping, float32, shape ``[T]``; and the norms of the steps, what was allowed, and
        what part of them was made, float64, shape ``[3, T]``.
    """
    norms, steps = np.empty(len(limits), dtype=np.float32), np.empty((3, len(limits)))
    fixed = (limits.numpy(), norms, gains.numpy(), silence, np.float32(EPSILON))
    tables = (*_settings(jobs, numbers), shares.numpy(), floors.numpy(), steps)
    _run("limit_and_update", jobs, *fixed, *tables, module="_limiting")
    return torch.from_numpy(norms), torch.from_numpy(steps)


def _settings(jobs: Jobs, numbers: Sequence[tuple[float, ...]]) -> tuple[Any, Any]:
    return np.array(numbers, dtype=np.float32), np.array(jobs.settings, dtype=np.int64)


def _run(kernel: str, jobs: Jobs, *arguments: Any, module: str = "_kernels") -> None:
    function = getattr(importlib.import_module(f"evenkeel.optim.cpu.{module}"), kernel)
    counts = np.array([tensor.numel() for tensor in jobs.parameters], dtype=np.int64)
    places = np.stack([addresses(tensors) for tensors in jobs.tensors])
    share(function, counts, places, counts, *arguments)
    for written in (jobs.parameters, jobs.exp_avgs, jobs.exp_avg_sqs):
        torch.autograd.graph.increment_version(written)  # as PyTorch's own operations in place do
