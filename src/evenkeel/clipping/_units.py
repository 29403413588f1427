"""The units of AGC: the rows of a parameter, what each of its outputs is computed from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from evenkeel.clipping._norms import accumulation_dtype, longest_exact, safe_range
from evenkeel.clipping.thresholds import EPSILON, WeightRelative
from evenkeel.errors import GradientError
from evenkeel.partition import Component, Piece

__all__ = ["Units", "count_kept", "norms_of", "reduced", "units"]


@dataclass(frozen=True, kw_only=True)
class Units:
    """The rows of one view of a parameter.

    Attributes:
        norms: norms of the gradient's rows, of a shape that the view broadcasts with; None without a gradient.
        limits: norms that the rows may have, of the same shape; infinity leaves a row alone.
    """

    norms: Tensor | None
    limits: Tensor

    @property
    def coefficients(self) -> Tensor:
        """What the rows are multiplied by, of the shape of the norms; there must be a gradient."""
        assert self.norms is not None  # noqa: S101  nobody scales what is not there
        free = self.limits.isinf()  # no quotient of infinity: its derivative is NaN even where it is not chosen
        quotients = self.limits.masked_fill(free, 1.0) / (self.norms + EPSILON)
        return torch.where(free, 1.0, quotients).clamp(max=1.0)

    @property
    def left(self) -> Tensor:
        """Norms of the rows after clipping; 0 where a norm is infinite, as its coefficient is."""
        assert self.norms is not None  # noqa: S101
        return (self.norms * self.coefficients).masked_fill(self.norms.isinf(), 0.0)


def units(
    part: Component, piece: Piece, weight: Tensor, grad: Tensor | None, threshold: WeightRelative, norm_type: float
) -> Iterator[tuple[Tensor | None, Units]]:
    """Find the rows of a piece and what they may be.

    Args:
        part: the component that owns the piece.
        piece: a parameter, or the cut of one.
        weight: the parameter, whole or as this rank has it.
        grad: its gradient, lying as the weight does; None if there is none.
        threshold: the share of the weights' norm.
        norm_type: order of the norms.

    Yields:
        Views of the gradient, and their rows.

    Raises:
        GradientError: if it cannot be told which entries are rows.
    """
    kept, ratio = count_kept(part, piece), threshold.ratio_of(part)
    views = piece.of(weight)
    grads: tuple[Tensor | None, ...] = (None,) * len(views) if grad is None else piece.of(grad)
    for view, own in zip(views, grads, strict=True):
        dims = reduced(view, piece, kept)
        norms = None if own is None else norms_of(own, dims, norm_type)
        weights = norms_of(view, dims, norm_type)
        weights = weights if norms is None else weights.to(norms)
        yield own, Units(norms=norms, limits=ratio * weights.clamp(min=threshold.floor))


def count_kept(part: Component, piece: Piece) -> int:
    """Return how many leading dimensions number the rows: none of a vector, two of stacked experts, else one.

    Args:
        part: the component that owns the piece.
        piece: a parameter, or the cut of one.

    Returns:
        The number of dimensions.
    """
    if len(piece.shape) < 2:
        return 0
    # A merged component may have no role, and its pieces no cut: then the module's name must do.
    stacked = (part.role or piece.cut or "").startswith("expert") or "experts" in piece.name.split(".")
    return 2 if stacked and len(piece.shape) == 3 else 1


def reduced(view: Tensor, piece: Piece, kept: int) -> tuple[int, ...]:
    """Return the dimensions of a view over which a row extends.

    Args:
        view: what a piece owns of a tensor.
        piece: the piece.
        kept: number of the parameter's leading dimensions that number the rows.

    Returns:
        The dimensions; for a vector all of them.

    Raises:
        GradientError: if the view does not tell.
    """
    if not kept:
        return tuple(range(view.dim()))
    dims = len(piece.shape)
    behind = [span.dim for span in piece.spans if span.count > 1]  # where runs repeat, they are a dimension at the end
    appended = view.dim() - dims
    if appended not in (0, len(behind)):
        raise GradientError(
            f"the rows of '{piece.name}' cannot be told apart where '{piece.cut}' cuts it and its shard splits it; use "
            "WeightRelative(per='component')"
        )
    return (*range(kept, dims), *(dims + place for place in range(appended) if behind[place] >= kept))


def norms_of(view: Tensor, dims: tuple[int, ...], norm_type: float) -> Tensor:
    """Take the norms of rows.

    Args:
        view: the entries.
        dims: the dimensions over which a row extends; none where every entry is one.
        norm_type: order of the norms.

    Returns:
        The norms, float32 (float64 for float64 entries); the dimensions are kept with length 1.
    """
    view = view.abs() if view.is_complex() else view
    dtype = accumulation_dtype([view])
    if not dims:
        return view.abs().to(dtype)
    if not view.numel():
        return view.new_zeros([1 if dim in dims else size for dim, size in enumerate(view.shape)], dtype=dtype)
    on_cpu = view.device.type == "cpu" and not torch.compiler.is_compiling()
    length = view.numel() // max(1, torch.Size(size for dim, size in enumerate(view.shape) if dim not in dims).numel())
    exact = on_cpu and length > longest_exact(norm_type) and norm_type != float("inf")
    norms: Tensor = torch.linalg.vector_norm(
        view, norm_type, dim=dims, keepdim=True, dtype=torch.float64 if exact else dtype
    )
    if on_cpu and norm_type != float("inf") and _lost(norms, norm_type):  # looking is free here
        largest = view.abs().amax(dims, keepdim=True).double()
        scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
        norms = torch.linalg.vector_norm(view / scale, norm_type, dim=dims, keepdim=True) * scale
    return norms.to(dtype)


def _lost(norms: Tensor, norm_type: float) -> bool:
    """Say whether a power may have overflowed or vanished."""
    smallest, largest = safe_range(norm_type, norms.dtype)
    try:
        return not bool(((norms > smallest) & (norms < largest)).all())
    except RuntimeError:  # inside torch.func.vmap nobody can look
        return False
