"""Component-wise clipping of gradients that a DeepSpeed engine keeps, by its documented access to them."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from evenkeel.clipping import ClipResult, MaxNorm, Nonfinite, clip_grads
from evenkeel.errors import ComponentError, GradientError, MissingExtraError, ThresholdError
from evenkeel.integrations._tested import warn_untested
from evenkeel.partition import Components

__all__ = ["clip_grad_norm_"]


@torch.no_grad()
def clip_grad_norm_(
    engine: Any,
    parts: Components,
    max_norm: MaxNorm,
    norm_type: float = 2.0,
    nonfinite: Nonfinite = "propagate",
) -> ClipResult | None:
    """Clip the gradient norm of every component on its own, under ZeRO 0 to 3.

    Call it between ``engine.backward(loss)`` and ``engine.step()``, on every rank. Gradients are read and written by
    ``deepspeed.utils.safe_get_full_grad`` and ``safe_set_full_grad``: each is put together from all ranks, which costs
    an all-reduce for every parameter, and room for all gradients on every rank while this runs. An fp16 loss scale is
    taken into account.

    Args:
        engine: what ``deepspeed.initialize`` returned, with ``gradient_clipping`` 0.
        parts: the components, looked up on the model before ``deepspeed.initialize``: ZeRO-3 empties the parameters.
        max_norm: see :func:`evenkeel.clip_grad_norm_`; no threshold relative to weights.
        norm_type: order of the norm; positive, may be ``inf``.
        nonfinite: see :func:`evenkeel.clip_grad_norm_`.

    Returns:
        Norms, thresholds and coefficients; None while gradients are accumulating, when nothing is clipped.

    Raises:
        MissingExtraError: if DeepSpeed is not installed.
        GradientError: if the engine clips globally too, or as :func:`evenkeel.clip_grad_norm_`.
        ThresholdError: if ``max_norm`` is no threshold for these components, or needs weights.
        ComponentError: if the components were looked up after the parameters had been emptied.
    """
    access = _access()
    warn_untested("deepspeed")
    if engine.gradient_clipping():
        raise GradientError(
            f"this DeepSpeed engine also clips globally (gradient_clipping={engine.gradient_clipping()}); set "
            '"gradient_clipping": 0 in its configuration'
        )
    if getattr(max_norm, "needs_weights", False):
        raise ThresholdError(
            f"{max_norm!r} looks at weights, which DeepSpeed keeps elsewhere; use a threshold of gradients alone"
        )
    if not engine.is_gradient_accumulation_boundary():
        return None
    parameters = {piece.name: piece.tensor() for part in parts for piece in part.pieces}
    _refuse_emptied(parts)
    scale = float(getattr(engine.optimizer, "loss_scale", 1.0) or 1.0)
    found: dict[str, Tensor] = {}
    for name, parameter in parameters.items():  # all ranks in one order: each of these is a collective call
        gradient = access.safe_get_full_grad(parameter)
        if gradient is not None:
            found[name] = gradient / scale
    clipped, result = clip_grads(found, parts, max_norm, norm_type, nonfinite)
    for name, gradient in clipped.items():
        access.safe_set_full_grad(parameters[name], gradient * scale)
    return result


def _access() -> Any:
    try:
        return importlib.import_module("deepspeed.utils")
    except ImportError as error:
        raise MissingExtraError(
            "evenkeel.integrations.deepspeed needs DeepSpeed, which is not installed: pip install 'evenkeel[deepspeed]'"
        ) from error


def _refuse_emptied(parts: Components) -> None:
    for part in parts:
        for piece in part.pieces:
            whole = getattr(piece.tensor(), "ds_shape", piece.shape)
            if tuple(whole) != tuple(piece.shape):
                raise ComponentError(
                    f"the component of '{piece.name}' was found with the shape {tuple(piece.shape)}, after ZeRO-3 had "
                    f"partitioned a parameter of {tuple(whole)}; call evenkeel.components(model) before "
                    "deepspeed.initialize"
                )
