"""Component-wise gradient norm clipping: the in-place function beside torch's own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from numbers import Real

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from evenkeel.clipping._at_once import can_clip_at_once, clip_at_once
from evenkeel.clipping._gradients import Gradients, collect
from evenkeel.clipping._local import scale_all
from evenkeel.clipping._look import look
from evenkeel.clipping._max_norm import MaxNorm, as_threshold
from evenkeel.clipping._nonfinite import Nonfinite, check_nonfinite, refuse_nonfinite, without_nonfinite
from evenkeel.clipping._plan import Plan, as_components, plan
from evenkeel.clipping._result import ClipResult
from evenkeel.clipping._rows import clip_rows
from evenkeel.clipping.thresholds import Fixed, Limits, Threshold, WeightRelative
from evenkeel.errors import GradientError, ThresholdError
from evenkeel.partition import Component, Components

__all__ = ["Nonfinite", "check_norm_type", "clip_coefficients", "clip_grad_norm_", "grad_norms"]


@torch.no_grad()
def clip_grad_norm_(
    parts: Components | nn.Module | Iterable[Component],
    max_norm: MaxNorm,
    norm_type: float = 2.0,
    nonfinite: Nonfinite = "propagate",
    *,
    group: ProcessGroup | None = None,
) -> ClipResult:
    r"""Clip the gradient norm of every component on its own, in place.

    .. math::

        g_c \leftarrow g_c \cdot \min\left(1, \frac{\delta_c}{\lVert g_c \rVert + 10^{-6}}\right)

    Call it where ``torch.nn.utils.clip_grad_norm_`` stands: after the last ``backward`` of the step and after
    ``scaler.unscale_``, before ``optimizer.step``. Norms are accumulated in float32 (float64 for float64 gradients)
    whatever the gradients' dtype. Nothing waits for the device unless ``nonfinite="error"``.

    Sharded gradients (FSDP, tensor and expert parallel) are clipped as one process would clip them: with one all-reduce
    for each dimension of a mesh that shards something, in which every rank must take part.

    Args:
        parts: the components, ``C`` of them; a model stands for ``components(model)``. With
            ``components(model, by="global")`` this is torch's own clipping.
        max_norm: the threshold, in units of the norm; or thresholds by role or path, the first that fits; or an object
            of ``evenkeel.thresholds``.
        norm_type: order of the norm; positive, may be ``inf``.
        nonfinite: what to do with a component whose norm is NaN or infinite. ``"propagate"``: NaN stays in that
            component and in no other. ``"zero"``: its gradient becomes zeros (momentum and weight decay still act).
            ``"error"``: raise and leave all gradients as they are; this waits for the device.
        group: the ranks that hold the stages of a pipeline; then the total norm, and components of which several stages
            have a part, are those of the whole model, at the price of one more all-reduce. Without it they are this
            rank's.

    Returns:
        Norms, thresholds and coefficients, on the gradients' device.

    Raises:
        ThresholdError: if ``max_norm`` is no threshold for these components.
        GradientError: if no component has a gradient, it was called in inference mode, or ``nonfinite="error"`` met a
            norm that is not finite.
        ComponentError: if ``parts`` are no components.

    Source: Yang & Ma 2022, arXiv 2210.10325, section 4.

    Example:
        >>> from evenkeel.partition import components
        >>> model = nn.Linear(2, 1)
        >>> model(torch.ones(1, 2)).sum().backward()          # gradients: weight (1, 1), bias 1
        >>> result = clip_grad_norm_(components(model), max_norm=0.5)
        >>> {name: round(norm, 3) for name, norm in result.to_dict().items()}
        {'weight': 1.414, 'bias': 1.0}
        >>> round(model.bias.grad.item(), 3)
        0.5
    """
    parts = as_components(parts)
    norm_type = check_norm_type(norm_type)
    check_nonfinite(nonfinite)
    _refuse_inference_mode()
    where = plan(parts, group)
    threshold = as_threshold(max_norm, parts)
    gradients = collect(where, norm_type)
    if isinstance(threshold, WeightRelative) and threshold.per == "row":
        return clip_rows(parts, where, threshold, norm_type=norm_type, nonfinite=nonfinite)
    silence = nonfinite == "zero"
    if isinstance(threshold, Fixed) and nonfinite != "error" and can_clip_at_once(gradients, where):
        norms, limits = clip_at_once(gradients, threshold.values, norm_type=norm_type, silence=silence)
        return _result(where, norms, limits, silence=silence, norm_type=norm_type)
    result, silenced = _seen(gradients, where, threshold, norm_type=norm_type, nonfinite=nonfinite)
    scale_all(gradients, where, result.coefficients, silenced)
    return result


@torch.no_grad()
def clip_coefficients(
    parts: Components | nn.Module | Iterable[Component],
    max_norm: MaxNorm,
    norm_type: float = 2.0,
    nonfinite: Nonfinite = "propagate",
    *,
    group: ProcessGroup | None = None,
    gain: Tensor | None = None,
) -> ClipResult:
    """Return what :func:`clip_grad_norm_` would multiply the gradients by, and change no gradient.

    For whoever scales gradients elsewhere: an optimizer that reads them anyway. A threshold object takes the step into
    account as it would there.

    Args:
        parts: the components, ``C`` of them, or the model.
        max_norm: see :func:`clip_grad_norm_`; no threshold by row, which is no number for each component.
        norm_type: order of the norm; positive, may be ``inf``.
        nonfinite: see :func:`clip_grad_norm_`; with ``"zero"`` the coefficient of a component whose norm is not finite
            is 0, and 0 times NaN is NaN: select.
        group: see :func:`clip_grad_norm_`.
        gain: what the gradients are to be multiplied by before they count, 0-dimensional, on their device: one over the
            loss scale. The norms are those of the product; the coefficients do not contain it.

    Returns:
        Norms, thresholds and coefficients, on the gradients' device.

    Raises:
        ThresholdError: if ``max_norm`` is no threshold for these components, or one by row.
        GradientError: as :func:`clip_grad_norm_`.
        ComponentError: if ``parts`` are no components.

    Example:
        >>> from evenkeel.partition import components
        >>> model = nn.Linear(1, 1)
        >>> model(torch.tensor([[4.0]])).sum().backward()          # gradients: weight 4, bias 1
        >>> clip_coefficients(components(model), max_norm=1.0).coefficients
        tensor([0.2500, 1.0000])
    """
    parts = as_components(parts)
    norm_type = check_norm_type(norm_type)
    check_nonfinite(nonfinite)
    _refuse_inference_mode()
    where = plan(parts, group)
    threshold = as_threshold(max_norm, parts)
    if isinstance(threshold, WeightRelative) and threshold.per == "row":
        raise ThresholdError(
            "WeightRelative(per='row') gives every row a coefficient of its own, and there is one for each component "
            "here; use clip_grad_norm_, or WeightRelative(per='component')"
        )
    gradients = collect(where, norm_type)
    return _seen(gradients, where, threshold, norm_type=norm_type, nonfinite=nonfinite, gain=gain)[0]


def _seen(
    gradients: Gradients,
    where: Plan,
    threshold: Threshold,
    *,
    norm_type: float,
    nonfinite: Nonfinite,
    gain: Tensor | None = None,
) -> tuple[ClipResult, Tensor | None]:
    """Take all norms first; return what follows from them, and which components are silenced."""
    silence = nonfinite == "zero"
    seen = look(gradients, where, norm_type, with_weights=threshold.needs_weights)
    if gain is not None:
        whole = None if seen.whole is None else seen.whole * gain
        seen = replace(seen, norms=seen.norms * gain, whole=whole)
    if nonfinite == "error":
        refuse_nonfinite(seen.norms, where.names)
    limits = threshold.limits(without_nonfinite(seen) if silence else seen)
    result = _result(where, seen.norms, limits, silence=silence, norm_type=norm_type, whole=seen.whole)
    result = replace(result, thresholds=result.thresholds.clone())  # a threshold may hand out what it keeps
    return result, ~seen.norms.isfinite() if silence else None


@torch.no_grad()
def grad_norms(
    parts: Components | nn.Module | Iterable[Component], norm_type: float = 2.0, *, group: ProcessGroup | None = None
) -> Tensor:
    """Return the gradient norm of every component and change nothing.

    Args:
        parts: the components, ``C`` of them, or the model.
        norm_type: order of the norm; positive, may be ``inf``.
        group: see :func:`clip_grad_norm_`.

    Returns:
        Norms, shape ``[C]``, float32 (float64 for float64 gradients), on the gradients' device; 0 where a component
        has no gradient.

    Raises:
        GradientError: as :func:`clip_grad_norm_`.
        ComponentError: if ``parts`` are no components.
    """
    parts = as_components(parts)
    norm_type = check_norm_type(norm_type)
    where = plan(parts, group)
    return look(collect(where, norm_type), where, norm_type).norms


def _result(
    where: Plan, norms: Tensor, limits: Limits, *, silence: bool, norm_type: float, whole: Tensor | None = None
) -> ClipResult:
    coefficients = limits.coefficients
    return ClipResult(
        names=where.names,
        norms=norms,
        thresholds=limits.thresholds,
        coefficients=coefficients.masked_fill(~norms.isfinite(), 0.0) if silence else coefficients,
        norm_type=float(norm_type),
        whole=whole,
    )


def check_norm_type(norm_type: float) -> float:
    """Refuse what is no order of a norm, by a ``GradientError``; return it as Python's own number."""
    if isinstance(norm_type, bool) or not isinstance(norm_type, Real) or not norm_type > 0:  # refuses NaN too
        raise GradientError(f"norm_type must be a positive number, but got {norm_type!r}; 2.0 is the usual one")
    return float(norm_type)


def _refuse_inference_mode() -> None:
    if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():  # which cannot be traced
        raise GradientError(
            "clip_grad_norm_ was called under torch.inference_mode(), where nothing can be trained; call it in the "
            "training step, outside (it needs no torch.no_grad() either)"
        )
