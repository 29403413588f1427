"""Any optimizer, with clipping before its update."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

from evenkeel.clipping import (
    ClipStatistics,
    MaxNorm,
    Nonfinite,
    as_threshold,
    check_nonfinite,
    check_norm_type,
    clip_grad_norm_,
)
from evenkeel.errors import OptimizerError
from evenkeel.optim._clipped_adamw import ClippedAdamW
from evenkeel.optim._groups import refuse_strangers, trained_parts
from evenkeel.optim._limiter import Limiter, begun_rates, rated_groups
from evenkeel.optim._max_update import MaxUpdate, as_limit, refuse_stages
from evenkeel.optim._states import keep_threshold, refuse_copy
from evenkeel.partition import Components, components

__all__ = ["clipped", "limiter_of", "refuse_unclippable"]

_Optimizer = TypeVar("_Optimizer", bound=Optimizer)
_MARK, _LIMITER = "_evenkeel_clips", "_evenkeel_limits"


def clipped(
    optimizer: _Optimizer,
    parts: Components | nn.Module,
    *,
    max_norm: MaxNorm,
    max_update: MaxUpdate | None = None,
    norm_type: float = 2.0,
    nonfinite: Nonfinite = "propagate",
    group: ProcessGroup | None = None,
    statistics: ClipStatistics | None = None,
    update_statistics: ClipStatistics | None = None,
) -> _Optimizer:
    """Let an optimizer clip every component before each of its steps, and limit each of them.

    That is :func:`evenkeel.clip_grad_norm_` and then the optimizer's own update: two passes over the gradients, at the
    price of both. For AdamW there is :class:`ClippedAdamW`, which needs one.

    With ``max_update`` no step changes a component by more than a share of its weights' norm, see
    :class:`UpdateLimit`: the weights are copied before the step, and what was too much is taken back after it. What is
    measured is the change that the optimizer made, weight decay and all. It costs a second copy of the trained weights
    all the time, and some passes over them. :func:`latest_update` tells what was limited.

    With a ``GradScaler`` gradients are unscaled before they are clipped, also where the optimizer's fused update would
    have done it. A threshold that learns is kept in the optimizer's ``state_dict``.

    Args:
        optimizer: any of torch's or of its kind; it is changed, not copied.
        parts: the components, or the model; every parameter of the optimizer must belong to one.
        max_norm: see :func:`evenkeel.clip_grad_norm_`; infinity clips nothing.
        max_update: the norm that a step may have, relative to the component's weights: a number, numbers by role or
            pattern, or an :class:`UpdateLimit`; None for any.
        norm_type: order of the norm; positive, may be ``inf``.
        nonfinite: see :func:`evenkeel.clip_grad_norm_`.
        group: the ranks of a pipeline's stages, see :func:`evenkeel.clip_grad_norm_`.
        statistics: where to count how often each component is clipped.
        update_statistics: where to count how often each component's steps are limited, and their norms.

    Returns:
        The same optimizer.

    Raises:
        OptimizerError: if it clips already, or computes its gradients itself, as ``LBFGS`` does in a closure; if
            ``max_update`` and ``group`` are given both.
        ComponentError: if a parameter of it belongs to no component.
        ThresholdError: if ``max_norm`` is no threshold for these components, or ``max_update`` no limit.
        GradientError: if ``norm_type`` or ``nonfinite`` is unknown.

    Source: Yang & Ma 2022, arXiv 2210.10325, section 4.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> optimizer = clipped(torch.optim.SGD(model.parameters(), lr=0.1), model, max_norm=0.05)
    """
    refuse_unclippable(optimizer)
    check_norm_type(norm_type)
    check_nonfinite(nonfinite)
    parts = components(parts) if isinstance(parts, nn.Module) else parts
    refuse_strangers((parameter for one in optimizer.param_groups for parameter in one["params"]), parts)
    as_threshold(max_norm, parts)
    limit = as_limit(max_update, parts)
    refuse_stages(limit, group)
    limiter = None if limit is None else Limiter(trained_parts(optimizer.param_groups, parts), limit)
    begun = begun_rates(optimizer)

    def clip(_: Optimizer, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if any(closure is not None for closure in (*args[1:], kwargs.get("closure"))):
            raise OptimizerError(
                "step() of a clipped optimizer was given a closure, which computes gradients after they were clipped; "
                "call backward() before step(), or clip inside of the closure by evenkeel.clip_grad_norm_"
            )
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and found_inf.device.type == "cpu" and found_inf.item():
            return  # a fused update skips the step too
        _unscale(optimizer)
        result = clip_grad_norm_(parts, max_norm, norm_type, nonfinite, group=group)
        if statistics is not None:
            statistics.update(result)
        if limiter is not None:
            limiter.before()

    def take_back(*_: Any) -> None:
        result = None if limiter is None else limiter.after(rated_groups(optimizer, begun), keep=True)
        if update_statistics is not None and result is not None:
            update_statistics.update(result)

    optimizer.register_step_pre_hook(clip)
    optimizer.register_step_post_hook(take_back)
    setattr(optimizer, _MARK, True)
    setattr(optimizer, _LIMITER, limiter)
    for copying in ("__deepcopy__", "__reduce_ex__"):  # a copy would lose the hook, and step without clipping
        setattr(optimizer, copying, refuse_copy)
    keep_threshold(optimizer, max_norm)
    return optimizer


def limiter_of(optimizer: Optimizer) -> Limiter | None:
    """Return what limits the steps of an optimizer that :func:`clipped` returned; None where nothing does."""
    found: Limiter | None = getattr(optimizer, _LIMITER, None)
    return found


def refuse_unclippable(optimizer: Optimizer) -> None:
    """Refuse, by an ``OptimizerError``, what is no optimizer, clips already, or computes gradients in its step."""
    name = type(optimizer).__name__
    if not isinstance(optimizer, Optimizer):
        raise OptimizerError(f"an optimizer of torch is needed here, but got a {name}")
    if isinstance(optimizer, ClippedAdamW) or hasattr(optimizer, _MARK):
        raise OptimizerError(
            f"{name} clips by component already, and would be made to do it twice; pass an optimizer that does not, "
            "such as torch.optim.AdamW"
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise OptimizerError(
            f"{name}.step needs a closure, in which it computes gradients several times; clip inside of the closure, "
            "by evenkeel.clip_grad_norm_ after backward()"
        )


def _unscale(optimizer: Any) -> None:
    """Divide by the loss scale what a fused update would have divided by it."""
    scale = getattr(optimizer, "grad_scale", None)
    if scale is None:
        return
    grads = [
        parameter.grad for one in optimizer.param_groups for parameter in one["params"] if parameter.grad is not None
    ]
    if grads:
        torch._foreach_div_(grads, scale)
    optimizer.grad_scale = None  # the scaler deletes it after the step
