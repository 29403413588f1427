"""What a MethodTrainer cannot do, told before it begins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from transformers import TrainingArguments

from evenkeel.errors import MethodError
from evenkeel.integrations.transformers._component_clip import ComponentClip
from evenkeel.integrations.transformers._optimizers import OptimizerKind
from evenkeel.methods import Method, Mix, parse_method

__all__ = ["check_callbacks", "check_mix", "check_model", "check_sharded", "mix_of"]


def mix_of(methods: Sequence[str | Method]) -> Mix:
    """Make a mix of names with options, and methods.

    Args:
        methods: what the user gave.

    Returns:
        The mix.

    Raises:
        MethodError: if it is no list, a name is unknown, or the methods cannot be mixed.
    """
    if isinstance(methods, str | bytes) or not isinstance(methods, Iterable):
        raise MethodError(f"methods must be a list, but got {methods!r}; write methods=[{methods!r}]")
    return Mix(tuple(parse_method(method) if isinstance(method, str) else method for method in methods))


def check_callbacks(mix: Mix, callbacks: Sequence[Any]) -> None:
    """Refuse, by a ``MethodError``, callbacks that would clip again.

    Args:
        mix: the methods.
        callbacks: what the user gave.
    """
    if any(isinstance(callback, ComponentClip) for callback in callbacks):
        raise MethodError(
            f"MethodTrainer clips as {mix.name} says, and was given the callback ComponentClip, which would clip "
            "again; keep one of them"
        )


def check_mix(mix: Mix, args: TrainingArguments, *, kind: OptimizerKind | None, in_backward: bool, given: Any) -> None:
    """Refuse, by a ``MethodError``, a way of training that leaves no room for what a method does.

    Args:
        mix: the methods.
        args: the training arguments.
        kind: the optimizer that was asked for.
        in_backward: whether steps are to happen in backward.
        given: the optimizer and the schedule that the user made.
    """
    touches, second = mix.touches, mix.owner("second pass")
    if in_backward:
        for touched in ("gradients", "weights"):
            if touched in touches:
                raise MethodError(
                    f"{touches[touched]} changes {touched} between backward and the optimizer's step, and "
                    "in_backward=True leaves no time between them; leave in_backward out"
                )
        if "step" in touches:
            raise MethodError(
                f"{touches['step']} steps all parameters together, and in_backward=True steps each apart; "
                "leave in_backward out"
            )
        if second is not None:
            raise MethodError(
                f"{second.name} takes gradients a second time before the step, and in_backward=True has made the step "
                "by then; leave in_backward out"
            )
    if kind is not None and "gradients" in touches:
        raise MethodError(
            f"{touches['gradients']} changes gradients after they were clipped, which optimizer='{kind}' does inside "
            "of its step; leave optimizer out"
        )
    _check_optimizer(mix, kind, in_backward, given)
    _check_arguments(mix, args)


def check_model(mix: Mix, model: nn.Module) -> None:
    """Refuse, by a ``MethodError``, a model on which activation checkpointing was turned on beside the arguments.

    Args:
        mix: the methods.
        model: the model.
    """
    if any(getattr(module, "gradient_checkpointing", False) is True for module in model.modules()):
        _refuse_changing_forward(mix, "activation checkpointing, which is on in this model,")


def check_sharded(mix: Mix, way: str) -> None:
    """Refuse, by a ``MethodError``, methods that act on whole parameters where no process has them.

    Args:
        mix: the methods.
        way: what becomes of the parameters: ``"FSDP shards them"``.
    """
    if mix.acting:
        raise MethodError(
            f"{mix.acting[0]} acts on whole parameters, and {way}; train it in one process or with "
            "DDP (methods that only clip, freeze or set learning rates work sharded)"
        )


def _refuse_changing_forward(mix: Mix, way: str) -> None:
    if "forward" in mix.touches:
        raise MethodError(
            f"{mix.touches['forward']} changes what the model computes from one forward pass to the next, and {way} "
            "relies on its being the same; turn that off"
        )


def _check_optimizer(mix: Mix, kind: OptimizerKind | None, in_backward: bool, given: Any) -> None:
    update = mix.owner("update")
    if update is not None and kind is not None:
        raise MethodError(f"{update.name} brings an optimizer of its own; leave optimizer='{kind}' out")
    if mix.recipe().correct_bias is False and in_backward:
        raise MethodError(f"{mix.name} trains without bias correction, which in_backward=True cannot; leave it out")
    if given is None or all(one is None for one in given):
        return
    rates = mix.owner("rates")
    named = update or rates
    if named is not None or mix.recipe().correct_bias is False:
        raise MethodError(
            f"{named.name if named else mix.name} decides how weights are updated, and MethodTrainer was given "
            "optimizers=(...); keep one of them"
        )


def _check_arguments(mix: Mix, args: TrainingArguments) -> None:
    touches, second = mix.touches, mix.owner("second pass")
    if second is not None and args.fp16:
        raise MethodError(
            f"{second.name} takes gradients twice in a step, and an fp16 loss scale allows that once; train with "
            "bf16=True in place of fp16=True"
        )
    names = ("activation_checkpointing", "gradient_checkpointing")  # of newer and of older versions
    recomputes = any(getattr(args, name, False) for name in names)
    if args.torch_compile:
        _refuse_changing_forward(mix, "torch_compile=True")
    if recomputes:
        _refuse_changing_forward(mix, "activation checkpointing")
    if "result" in touches and args.load_best_model_at_end:
        raise MethodError(
            f"{touches['result']} ends a training with other weights than its last ones, and "
            "load_best_model_at_end=True would overwrite them; turn that off"
        )
    if not mix.acting:
        return
    if args.fsdp or args.deepspeed:
        check_sharded(mix, f"{'FSDP' if args.fsdp else 'DeepSpeed'} shards them")
    if args.auto_find_batch_size:
        raise MethodError(
            f"auto_find_batch_size=True begins a training again in its middle, which {mix.acting[0]} cannot; set the "
            "batch size yourself"
        )
