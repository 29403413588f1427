"""Component-wise clipping where ``Accelerator.clip_grad_norm_`` stands."""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from evenkeel.clipping import ClipResult, MaxNorm, Nonfinite
from evenkeel.clipping import clip_grad_norm_ as clip
from evenkeel.errors import GradientError
from evenkeel.integrations._tested import warn_untested
from evenkeel.integrations._unscale import unscale
from evenkeel.partition import Components, components

__all__ = ["clip_grad_norm_"]


def clip_grad_norm_(
    accelerator: Accelerator,
    parts: Components | nn.Module,
    max_norm: MaxNorm,
    norm_type: float = 2.0,
    nonfinite: Nonfinite = "propagate",
) -> ClipResult | None:
    """Clip the gradient norm of every component on its own, as ``accelerator`` trains.

    Call it where ``accelerator.clip_grad_norm_`` stands, after ``accelerator.backward`` and before ``optimizer.step``,
    with or without ``if accelerator.sync_gradients`` around it. An fp16 loss scale is divided out once, however often
    it is called in a step, and for those optimizers alone that hold the components' parameters; sharded gradients are
    clipped as one process would clip them. Every rank must call it.

    Args:
        accelerator: what prepared the model and its optimizer.
        parts: the components, looked up after ``accelerator.prepare``, or the prepared model.
        max_norm: see :func:`evenkeel.clip_grad_norm_`.
        norm_type: order of the norm; positive, may be ``inf``.
        nonfinite: see :func:`evenkeel.clip_grad_norm_`.

    Returns:
        Norms, thresholds and coefficients; None while gradients are accumulating, when nothing is clipped.

    Raises:
        GradientError: if the accelerator keeps gradients elsewhere (DeepSpeed, Megatron-LM, XLA), a loss scale cannot
            be divided out, or as :func:`evenkeel.clip_grad_norm_`.
        ThresholdError: if ``max_norm`` is no threshold for these components.
        ComponentError: if ``parts`` are no components.
    """
    warn_untested("accelerate")
    if accelerator.distributed_type in _ELSEWHERE:
        kind = accelerator.distributed_type.value
        raise GradientError(
            f"this Accelerator trains by {kind}, where {_ELSEWHERE[accelerator.distributed_type]}; use DDP or FSDP, or "
            "its own clipping"
        )
    if not accelerator.sync_gradients:
        return None
    found = components(parts) if isinstance(parts, nn.Module) else parts
    _unscale(accelerator, found)
    return clip(found, max_norm, norm_type, nonfinite)


_ELSEWHERE = {
    DistributedType.DEEPSPEED: "accelerator.backward has clipped and made the step already",
    DistributedType.MEGATRON_LM: "gradients lie in buffers of Megatron's own",
    DistributedType.XLA: "gradients are reduced after this, in the optimizer's step",
}


def _unscale(accelerator: Accelerator, parts: Components) -> None:
    """Divide the loss scale out for each optimizer that holds a parameter of ``parts``."""
    scaler = getattr(accelerator, "scaler", None)
    if scaler is None or not scaler.is_enabled():
        return
    ours = {id(parameter) for part in parts for parameter in part.parameters}
    holding = [
        optimizer
        for optimizer in accelerator._optimizers
        if any(id(parameter) in ours for group in optimizer.param_groups for parameter in group["params"])
    ]
    if not holding:
        raise GradientError(
            "gradients are multiplied by an fp16 loss scale, and no optimizer that this Accelerator prepared holds a "
            "parameter of these components; pass model and optimizer through accelerator.prepare first, and look the "
            "components up afterwards"
        )
    for optimizer in holding:
        unscale(optimizer)
