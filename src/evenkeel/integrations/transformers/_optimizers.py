"""Where a Trainer's gradients are clipped: in a callback, inside of the optimizer, or inside of backward."""

from __future__ import annotations

import copy
from typing import Any, Literal, get_args

import torch
from torch.optim import Optimizer
from transformers import TrainingArguments
from transformers.training_args import ParallelMode

from evenkeel.errors import MethodError, unknown_name
from evenkeel.methods import Clipping
from evenkeel.optim import ClippedAdamW, InBackward, step_in_backward

__all__ = ["OptimizerKind", "check_choice", "clipped_adamw", "stepping_in_backward"]

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


def clipped_adamw(plain: Optimizer, clipping: Clipping) -> ClippedAdamW:
    """Make AdamW with clipping inside out of the AdamW that the Trainer made.

    Args:
        plain: the Trainer's optimizer.
        clipping: what is clipped.

    Returns:
        An optimizer of the same groups.

    Raises:
        MethodError: if the Trainer's is no ``torch.optim.AdamW``.
    """
    if type(plain) is not torch.optim.AdamW:
        raise MethodError(
            f"optimizer='clipped-adamw' stands for torch.optim.AdamW, and this Trainer makes a {type(plain).__name__}; "
            "set TrainingArguments(optim='adamw_torch'), or leave optimizer out"
        )
    chosen = {name: value for name, value in plain.defaults.items() if name in _OPTIONS}  # schedules ask for the rate
    return ClippedAdamW(plain.param_groups, parts=clipping.parts, max_norm=copy.deepcopy(clipping.max_norm), **chosen)


_OPTIONS = {"lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "foreach", "fused", "capturable"}


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
    return step_in_backward(clipping.parts, lambda _: plain, clipping.max_norm, replicated=replicated)
