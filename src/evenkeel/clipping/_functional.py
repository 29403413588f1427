"""Component-wise gradient norm clipping as a pure function: for per-sample gradients and differentiation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from evenkeel.clipping._clip import check_norm_type
from evenkeel.clipping._max_norm import MaxNorm, as_threshold
from evenkeel.clipping._named import Named, find_named, names_of, rebuilt
from evenkeel.clipping._nonfinite import Nonfinite, check_nonfinite, refuse_nonfinite, without_nonfinite
from evenkeel.clipping._norms import accumulation_dtype
from evenkeel.clipping._plan import as_components
from evenkeel.clipping._pure import joint_norm, pure_norm
from evenkeel.clipping._result import ClipResult
from evenkeel.clipping._rows import share_left
from evenkeel.clipping._units import units
from evenkeel.clipping.thresholds import Fixed, Limits, Seen, Threshold, WeightRelative
from evenkeel.errors import EvenkeelError, GradientError, ThresholdError
from evenkeel.partition import Component, Components, Piece

__all__ = ["clip_grads"]


def clip_grads(
    grads: Mapping[str, Tensor],
    parts: Components | nn.Module | Iterable[Component],
    max_norm: MaxNorm,
    norm_type: float = 2.0,
    nonfinite: Nonfinite = "propagate",
    *,
    weights: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], ClipResult]:
    r"""Clip the gradient norm of every component on its own, and change nothing.

    .. math::

        g_c \cdot \min\left(1, \frac{\delta_c}{\lVert g_c \rVert + 10^{-6}}\right)

    The pure function beside :func:`evenkeel.clip_grad_norm_`: gradients come in and go out by name, as
    ``torch.func.grad`` of a ``functional_call`` makes them, and nobody looks at ``parameter.grad``. It works inside
    ``torch.func.vmap`` (then every sample is clipped on its own), ``torch.func.grad`` (it can be differentiated; a
    threshold counts as constant) and ``torch.compile``. A running threshold learns here too, which is no pure function:
    it cannot be used inside ``vmap``.

    Args:
        grads: gradients by the names of ``model.named_parameters()``; what is left out has no gradient. Dense, or
            sparse where no component cuts the parameter; not sharded.
        parts: the components, ``C`` of them, or the model, whose names may then be those of a wrapped model too.
        max_norm: see :func:`evenkeel.clip_grad_norm_`.
        norm_type: order of the norm; positive, may be ``inf``.
        nonfinite: see :func:`evenkeel.clip_grad_norm_`; ``"error"`` waits for the device, and cannot be used inside
            ``vmap``.
        weights: the parameters by the same names, for thresholds relative to them; what is left out is the model's own.

    Returns:
        The clipped gradients, under the names and in the order of ``grads``; and norms, thresholds and coefficients.

    Raises:
        ThresholdError: if ``max_norm`` is no threshold for these components, or a running one is used inside ``vmap``.
        GradientError: if there is no gradient, no component has one of the names, a gradient does not fit its
            parameter, or ``nonfinite="error"`` met a norm that is not finite.
        ComponentError: if ``parts`` are no components.

    Source: Yang & Ma 2022, arXiv 2210.10325, section 4.

    Example:
        >>> from torch.func import functional_call, grad, vmap
        >>> model = nn.Linear(2, 1)
        >>> def clipped(params, sample):
        ...     grads = grad(lambda params: functional_call(model, params, (sample,)).sum())(params)
        ...     return clip_grads(grads, model, max_norm=1.0)[0]
        >>> samples = torch.tensor([[3.0, 4.0], [0.3, 0.4]])          # gradients of the weight: the samples themselves
        >>> each = vmap(clipped, in_dims=(None, 0))(dict(model.named_parameters()), samples)
        >>> each["weight"].norm(dim=(1, 2))
        tensor([1.0000, 0.5000])
    """
    names = names_of(parts)
    parts = as_components(parts)
    norm_type = check_norm_type(norm_type)
    check_nonfinite(nonfinite)
    threshold = as_threshold(max_norm, parts)
    found = find_named(grads, parts, names)
    own = {} if weights is None else {one.piece.name: one.whole for one in find_named(weights, parts, names, "weight")}
    if isinstance(threshold, WeightRelative) and threshold.per == "row":
        result, factors = _by_row(found, parts, threshold, own, norm_type)
        if nonfinite == "error":
            _refuse_nonfinite(result.norms, result.names)
    else:
        result = _by_component(found, parts, threshold, own, norm_type, nonfinite)
        factors = [result.coefficients[one.owner] for one in found]
    off = None
    if nonfinite == "zero":
        silenced = ~result.norms.isfinite()
        result = replace(result, coefficients=result.coefficients.masked_fill(silenced, 0.0))
        off = [silenced[one.owner] for one in found]
    return rebuilt(grads, found, factors, off), result


def _by_component(
    found: Sequence[Named],
    parts: Components,
    threshold: Threshold,
    own: Mapping[str, Tensor],
    norm_type: float,
    nonfinite: Nonfinite,
) -> ClipResult:
    norms = _together([one.read for one in found], [one.owner for one in found], len(parts), norm_type)
    weights = None
    if threshold.needs_weights:
        pieces = [(owner, piece) for owner, part in enumerate(parts) for piece in part.pieces]
        read = [entries for _, piece in pieces for entries in piece.of(_weight(piece, own))]
        weights = _together(read, [owner for owner, _ in pieces], len(parts), norm_type).to(norms)
    if nonfinite == "error":  # before a threshold learns from the step
        _refuse_nonfinite(norms, [part.name for part in parts])
    seen = Seen(norms=norms, weights=weights, norm_type=norm_type)
    limits = _limits(threshold, without_nonfinite(seen) if nonfinite == "zero" else seen)
    return _result(parts, norms, limits.thresholds, limits.coefficients, norm_type)


def _by_row(
    found: Sequence[Named], parts: Components, threshold: WeightRelative, own: Mapping[str, Tensor], norm_type: float
) -> tuple[ClipResult, list[Tensor]]:
    grads = {(one.owner, one.piece.name, one.piece.spans): one for one in found}
    owners: list[int] = []
    norms: list[Tensor] = []
    limits: list[Tensor] = []
    left: list[Tensor] = []
    factors: list[Tensor] = []
    for owner, part in enumerate(parts):
        for piece in part.pieces:
            one = grads.get((owner, piece.name, piece.spans))
            if one is not None and one.whole.layout is not torch.strided:
                raise GradientError(
                    f"the gradient of '{one.name}' is sparse, whose rows are not at hand; pass a dense one, or use "
                    "WeightRelative(per='component')"
                )
            ((_, rows),) = units(
                part, piece, _weight(piece, own), None if one is None else one.whole, threshold, norm_type
            )
            owners.append(owner)
            limits.append(rows.limits)
            norms.append(rows.limits.new_zeros(()) if rows.norms is None else rows.norms)
            left.append(rows.limits.new_zeros(()) if rows.norms is None else rows.left)
            if one is not None:
                factors.append(rows.coefficients)
    before, allowed, after = (_together(each, owners, len(parts), norm_type) for each in (norms, limits, left))
    return _result(parts, before, allowed.to(before), share_left(before, after.to(before)), norm_type), factors


def _together(tensors: Sequence[Tensor], owners: Sequence[int], count: int, norm_type: float) -> Tensor:
    """Return the components' norms, shape ``[C]``, on the first tensor's device."""
    dtype = accumulation_dtype(tensors)
    home = tensors[0].device
    each: list[list[Tensor]] = [[] for _ in range(count)]
    for tensor, owner in zip(tensors, owners, strict=True):
        each[owner].append(pure_norm(tensor, norm_type, dtype).to(home))
    zero = torch.zeros((), dtype=dtype, device=home)
    return torch.stack([joint_norm(norms, norm_type) if norms else zero for norms in each])


def _weight(piece: Piece, own: Mapping[str, Tensor]) -> Tensor:
    return own[piece.name] if piece.name in own else piece.tensor().detach()


def _limits(threshold: Threshold, seen: Seen) -> Limits:
    """Ask the threshold; what it says is a constant, while the norms that it is compared with are not."""
    if isinstance(threshold, Fixed):  # which would remember a tensor that belongs to a transform
        values = torch.tensor(threshold.values, dtype=seen.norms.dtype, device="cpu").to(
            seen.norms.device, non_blocking=True
        )
        return Limits(thresholds=values, norms=seen.norms)
    norms = seen.norms.detach()
    weights = None if seen.weights is None else seen.weights.detach()
    try:
        with torch.no_grad():
            limits = threshold.limits(replace(seen, norms=norms, weights=weights))
    except EvenkeelError:
        raise
    except RuntimeError as error:
        raise ThresholdError(
            f"{threshold!r} could not be asked ({str(error).splitlines()[0]}); inside torch.func.vmap and grad no "
            "threshold can learn: use a number, Budget or WeightRelative there"
        ) from error
    return replace(limits, norms=seen.norms) if limits.norms is norms else limits


def _refuse_nonfinite(norms: Tensor, names: Sequence[str]) -> None:
    try:
        refuse_nonfinite(norms, names)
    except EvenkeelError:
        raise
    except RuntimeError as error:
        raise GradientError(
            "nonfinite='error' must look at the norms, which torch.func.vmap does not allow; use 'propagate' or 'zero' "
            "inside, and look at the result outside"
        ) from error


def _result(parts: Components, norms: Tensor, thresholds: Tensor, coefficients: Tensor, norm_type: float) -> ClipResult:
    return ClipResult(
        names=tuple(part.name for part in parts),
        norms=norms,
        thresholds=thresholds,
        coefficients=coefficients,
        norm_type=float(norm_type),
    )
