"""Component-wise gradient norm clipping: the in-place function beside torch's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from evenkeel.clipping._max_norm import MaxNorm, resolve
from evenkeel.clipping._norms import component_norms
from evenkeel.errors import ComponentError, GradientError
from evenkeel.partition import Components, components

__all__ = ["ClipResult", "Nonfinite", "clip_grad_norm_", "grad_norms"]

Nonfinite = Literal["propagate", "zero", "error"]

EPSILON = 1e-6  # as in torch.nn.utils.clip_grad_norm_ and in the paper's code


@dataclass(frozen=True, kw_only=True)
class ClipResult:
    """What one call of :func:`clip_grad_norm_` saw and did. ``C`` components; tensors stay on the device.

    Attributes:
        names: the components' names, ``C`` of them.
        norms: norms before clipping, shape ``[C]``; 0 where a component has no gradient.
        thresholds: the norms allowed, shape ``[C]``.
        coefficients: what the gradients were multiplied by, shape ``[C]``.
        norm_type: order of the norm.
    """

    names: tuple[str, ...]
    norms: Tensor
    thresholds: Tensor
    coefficients: Tensor
    norm_type: float = field(default=2.0)

    @property
    def total_norm(self) -> Tensor:
        """The norm of all components taken together, before clipping; 0-dimensional."""
        total: Tensor = torch.linalg.vector_norm(self.norms, self.norm_type)
        return total

    def to_dict(self) -> dict[str, float]:
        """Return the norm of every component by name. The only call here that waits for the device."""
        return dict(zip(self.names, self.norms.tolist(), strict=True))


@torch.no_grad()
def clip_grad_norm_(
    parts: Components | nn.Module,
    max_norm: MaxNorm,
    norm_type: float = 2.0,
    nonfinite: Nonfinite = "propagate",
) -> ClipResult:
    r"""Clip the gradient norm of every component on its own, in place.

    .. math::

        g_c \leftarrow g_c \cdot \min\left(1, \frac{\delta_c}{\lVert g_c \rVert + 10^{-6}}\right)

    Call it where ``torch.nn.utils.clip_grad_norm_`` stands: after the last ``backward`` of the step and after
    ``scaler.unscale_``, before ``optimizer.step``. Norms are accumulated in float32 (float64 for float64 gradients)
    whatever the gradients' dtype. Nothing waits for the device unless ``nonfinite="error"``.

    Args:
        parts: the components, ``C`` of them; a model stands for ``components(model)``. With
            ``components(model, by="global")`` this is torch's own clipping.
        max_norm: the threshold, in units of the norm; or thresholds by role or path, the first that fits.
        norm_type: order of the norm; positive, may be ``inf``.
        nonfinite: what to do with a component whose norm is NaN or infinite. ``"propagate"``: NaN stays in that
            component and in no other. ``"zero"``: its gradient becomes zeros (momentum and weight decay still act).
            ``"error"``: raise and leave all gradients as they are.

    Returns:
        Norms, thresholds and coefficients, on the gradients' device.

    Raises:
        ThresholdError: if ``max_norm`` is no threshold for these components.
        GradientError: if no component has a gradient, gradients are sharded, sparse or on several devices, or
            ``nonfinite="error"`` met one.
        ComponentError: if ``parts`` are no components.

    Source: Yang & Ma 2022, arXiv 2210.10325, section 4.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> model(torch.ones(1, 2)).sum().backward()          # gradients: weight (1, 1), bias 1
        >>> result = clip_grad_norm_(components(model), max_norm=0.5)
        >>> {name: round(norm, 3) for name, norm in result.to_dict().items()}
        {'weight': 1.414, 'bias': 1.0}
        >>> round(model.bias.grad.item(), 3)
        0.5
    """
    parts = _as_components(parts)
    _check_norm_type(norm_type)
    thresholds_list = resolve(max_norm, parts)
    if nonfinite not in ("propagate", "zero", "error"):
        raise GradientError(f"nonfinite must be 'propagate', 'zero' or 'error', but got '{nonfinite}'")
    grads, owners = _gradients(parts)
    norms = component_norms(grads, owners, count=len(parts), norm_type=norm_type)
    if nonfinite == "error":
        _refuse_nonfinite(norms, parts)
    thresholds = torch.tensor(thresholds_list, dtype=norms.dtype).to(norms.device, non_blocking=True)
    # inf / inf is NaN, so that an infinite threshold needs the comparison, not the quotient alone.
    coefficients = torch.where(thresholds.isinf() & ~norms.isnan(), 1.0, thresholds / (norms + EPSILON)).clamp(max=1.0)
    if nonfinite == "zero":
        coefficients = torch.where(norms.isfinite(), coefficients, 0.0)
    _scale(grads, owners, coefficients)
    if nonfinite == "zero":
        for grad, owner in zip(grads, owners, strict=True):  # 0 * NaN is NaN: select, do not multiply
            grad.masked_fill_(~norms[owner].isfinite(), 0.0)
    return ClipResult(
        names=tuple(part.name for part in parts),
        norms=norms,
        thresholds=thresholds,
        coefficients=coefficients,
        norm_type=float(norm_type),
    )


@torch.no_grad()
def grad_norms(parts: Components, norm_type: float = 2.0) -> Tensor:
    """Return the gradient norm of every component and change nothing.

    Args:
        parts: the components, ``C`` of them.
        norm_type: order of the norm; positive, may be ``inf``.

    Returns:
        Norms, shape ``[C]``, float32 (float64 for float64 gradients), on the gradients' device; 0 where a component
        has no gradient.

    Raises:
        GradientError: as :func:`clip_grad_norm_`.
    """
    _check_norm_type(norm_type)
    grads, owners = _gradients(parts)
    return component_norms(grads, owners, count=len(parts), norm_type=norm_type)


def _check_norm_type(norm_type: float) -> None:
    if isinstance(norm_type, bool) or not isinstance(norm_type, int | float) or not norm_type > 0:  # refuses NaN too
        raise GradientError(f"norm_type must be a positive number, but got {norm_type!r}; 2.0 is the usual one")


def _as_components(parts: Components | nn.Module) -> Components:
    if isinstance(parts, nn.Module):
        return components(parts)
    if not isinstance(parts, Components):
        raise ComponentError(
            f"clip_grad_norm_ was given a {type(parts).__name__}; it needs evenkeel.components(model), because a "
            "list of tensors does not say which of them belong together"
        )
    return parts


def _gradients(parts: Components) -> tuple[list[Tensor], list[int]]:
    """Return all gradients and, for each, the index of its component."""
    grads: list[Tensor] = []
    owners: list[int] = []
    for index, part in enumerate(parts):
        for piece in part.pieces:
            grad = piece.tensor().grad
            if grad is not None:
                _check(grad, part.name)
                views = piece.of(grad)
                grads.extend(views)
                owners.extend([index] * len(views))
    if not grads:
        raise GradientError(
            f"none of the {len(parts)} components has a gradient; call clip_grad_norm_ after backward() and before "
            "zero_grad(), on components of the model that was trained"
        )
    devices = {grad.device for grad in grads}
    if len(devices) > 1:
        raise GradientError(
            f"gradients lie on several devices ({', '.join(sorted(map(str, devices)))}), which this version cannot "
            "clip in one call; select the components of each device and call once for each"
        )
    return grads, owners


def _check(grad: Tensor, name: str) -> None:
    if isinstance(grad, DTensor):
        raise GradientError(
            f"the gradient of '{name}' is sharded (a DTensor), which this version cannot clip exactly; "
            "train with DDP or on one device"
        )
    if grad.is_sparse or grad.is_complex():
        raise GradientError(
            f"the gradient of '{name}' is {'sparse' if grad.is_sparse else 'complex'}, which this version cannot clip; "
            "use dense real gradients (sparse=False in nn.Embedding)"
        )


def _scale(grads: list[Tensor], owners: list[int], coefficients: Tensor) -> None:
    """Multiply every gradient by its component's coefficient."""
    if coefficients.device.type != "cpu" or torch.compiler.is_compiling():
        factors = coefficients.unbind()
        torch._foreach_mul_(grads, [factors[owner] for owner in owners])
        return
    # On the CPU looking at the coefficients costs nothing, and what is not clipped need not be touched.
    values = coefficients.tolist()
    clipped = [(grad, values[owner]) for grad, owner in zip(grads, owners, strict=True) if values[owner] != 1.0]
    if clipped:
        torch._foreach_mul_([grad for grad, _ in clipped], [value for _, value in clipped])


def _refuse_nonfinite(norms: Tensor, parts: Components) -> None:
    culprits = [part.name for part, finite in zip(parts, norms.isfinite().tolist(), strict=True) if not finite]
    if culprits:
        shown = ", ".join(culprits[:5]) + (f" and {len(culprits) - 5} more" if len(culprits) > 5 else "")
        raise GradientError(
            f"the gradient norm is not finite in {len(culprits)} of {len(norms)} components: {shown}; gradients are "
            "left as they were. Lower the learning rate, or pass nonfinite='zero' to leave such components out"
        )
