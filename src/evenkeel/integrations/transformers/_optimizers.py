"""Where a Trainer's gradients are clipped: in a callback, inside of the optimizer, or inside of backward."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import TrainingArguments
from transformers.training_args import ParallelMode

from evenkeel.errors import MethodError, unknown_name
from evenkeel.methods import Clipping
from evenkeel.optim import ClippedAdamW, InBackward, clipped, step_in_backward
from evenkeel.partition import Components

__all__ = [
    "OptimizerKind",
    "check_choice",
    "clipped_adamw",
    "limited",
    "set_rates",
    "stepping_in_backward",
    "without_correction",
]

OptimizerKind = Literal["clipped-adamw"]


def check_choice(
    optimizer: OptimizerKind | None, in_backward: bool, args: TrainingArguments, given: Any = (None, None)
) -> None:
    """Refuse, by a ``MethodError``, what cannot be, before training.

    Args:
        optimizer: what was asked for.
        in_backward: whether steps are to happen in backward.
        args: the training arguments beside it.
        given: the optimizer and the schedule that the user made.
    """
    if optimizer is not None and optimizer not in get_args(OptimizerKind):
        raise MethodError(unknown_name("optimizer", str(optimizer), get_args(OptimizerKind)))
    if optimizer is not None and in_backward:
        raise MethodError(
            "MethodTrainer was given optimizer='clipped-adamw' and in_backward=True, and gradients are clipped once: "
            "inside of the optimizer, or inside of backward; keep one of them"
        )
    if optimizer is not None and given is not None and any(one is not None for one in given):
        raise MethodError(
            "MethodTrainer was given optimizers=... and optimizer='clipped-adamw', which would take the place of yours "
            "and leave your schedule without one; keep one of them"
        )
    if in_backward and args.auto_find_batch_size:
        raise MethodError(
            "auto_find_batch_size=True tries a batch again that did not fit, and in_backward=True has stepped some of "
            "the model by then; set the batch size yourself"
        )
    if in_backward and args.fp16:
        raise MethodError(
            "in_backward=True uses gradients before a loss scale could be divided out; train with bf16=True in place "
            "of fp16=True, or without in_backward"
        )


def clipped_adamw(plain: Optimizer, clipping: Clipping, *, correct_bias: bool = True) -> ClippedAdamW:
    """Make AdamW with clipping inside out of the AdamW that the Trainer made.

    Args:
        plain: the Trainer's optimizer.
        clipping: what is clipped.
        correct_bias: whether Adam's moments are corrected for having begun at 0.

    Returns:
        An optimizer of the same groups.

    Raises:
        MethodError: if the Trainer's is no ``torch.optim.AdamW``.
    """
    if type(plain) is not torch.optim.AdamW:
        raise MethodError(
            "clipping inside of the optimizer, and Adam without bias correction, stand for torch.optim.AdamW, and this "
            f"Trainer makes a {type(plain).__name__}; set TrainingArguments(optim='adamw_torch'), or leave them out"
        )
    chosen = {name: value for name, value in plain.defaults.items() if name in _OPTIONS}  # schedules ask for the rate
    max_norm = copy.deepcopy(clipping.max_norm)
    return ClippedAdamW(
        plain.param_groups,
        parts=clipping.parts,
        max_norm=max_norm,
        max_update=clipping.max_update,
        correct_bias=correct_bias,
        **chosen,
    )


_OPTIONS = {"lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "foreach", "fused", "capturable"}


def limited(optimizer: Optimizer, clipping: Clipping) -> Optimizer:
    """Let an optimizer limit its steps where a method wants that; gradients are clipped before it by somebody else.

    Args:
        optimizer: the training's optimizer, without state.
        clipping: what is clipped.

    Returns:
        The same; in place of an AdamW whose steps are to be limited one of the same groups.
    """
    if clipping.max_update is None:
        return optimizer
    if type(optimizer) is torch.optim.AdamW:
        return clipped_adamw(optimizer, replace(clipping, max_norm=math.inf))
    return clipped(optimizer, clipping.parts, max_norm=math.inf, max_update=clipping.max_update)


def stepping_in_backward(plain: Optimizer, clipping: Clipping, args: TrainingArguments) -> InBackward:
    """Let the optimizer that the Trainer made step in backward.

    Args:
        plain: the Trainer's optimizer.
        clipping: what is clipped.
        args: the training arguments, which say how many processes train and how.

    Returns:
        What stands for the optimizer.
    """
    replicated = args.parallel_mode == ParallelMode.DISTRIBUTED and not args.fsdp
    return step_in_backward(
        clipping.parts,
        lambda _: plain,
        clipping.max_norm,
        max_update=clipping.max_update,
        replicated=replicated,
    )


def without_correction(plain: Optimizer, parts: Components) -> ClippedAdamW:
    """Make the Adam of before bias correction out of the AdamW that the Trainer made; it clips nothing.

    Args:
        plain: the Trainer's optimizer.
        parts: the components that are trained.

    Returns:
        An optimizer of the same groups.
    """
    return clipped_adamw(plain, Clipping(parts=parts, max_norm=math.inf), correct_bias=False)


def set_rates(optimizer: Optimizer, parts: Components, rates: Mapping[str, float]) -> None:
    """Divide the groups of an optimizer without state, so that each component has its own learning rate.

    Args:
        optimizer: the optimizer.
        parts: the components.
        rates: what the rate is multiplied by, by the name of a component; 1 for those that are not there.

    Raises:
        MethodError: if parts of one tensor are to have different rates.
    """
    factors: dict[int, tuple[float, str]] = {}
    for part in parts:
        for parameter in part.parameters:
            own = (rates.get(part.name, 1.0), part.name)
            first = factors.setdefault(id(parameter), own)
            if first[0] != own[0]:
                raise MethodError(
                    f"'{first[1]}' and '{own[1]}' are parts of one tensor and are to have learning rates of their own "
                    f"(x {first[0]:g} and x {own[0]:g}), which an optimizer cannot give; give both the same"
                )
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        chosen: dict[float, list[Tensor]] = {}
        for parameter in group["params"]:
            chosen.setdefault(factors.get(id(parameter), (1.0, ""))[0], []).append(parameter)
        groups.extend(  # the highest rate first: it is the one that a Trainer logs
            {**group, "params": chosen[factor], "lr": group["lr"] * factor} for factor in sorted(chosen, reverse=True)
        )
    optimizer.param_groups[:] = groups
