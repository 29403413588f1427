"""Rows of this rank's gradients, and vectors of which it has a part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor

from evenkeel.clipping._plan import Plan
from evenkeel.clipping._units import Units, count_kept, norms_of, units
from evenkeel.clipping.thresholds import WeightRelative
from evenkeel.errors import GradientError
from evenkeel.partition import Component, Components, Piece

__all__ = ["Rows", "Vector", "find_rows"]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows that are whole on this rank.

    Attributes:
        units: their norms and limits.
        write: what is scaled, in place; None without a gradient.
        places: for each entry of ``write`` along its first dimension the row that it belongs to; None where they lie
            as the norms do.
        owner: the component.
        slot: the slot of the plan; negative where another pipeline stage counts them.
    """

    units: Units
    write: Tensor | None
    places: Tensor | None = None
    owner: int
    slot: int


@dataclass(frozen=True, kw_only=True)
class Vector:
    """A vector, one unit, whose entries lie on several ranks.

    Attributes:
        norms: this rank's norms of the gradient and of the weights, shape ``[2]``.
        write: what is scaled, in place; none without a gradient.
        groups: the ranks.
        owner: the component.
        ratio: what share of the weights' norm the gradient's may be.
        counted: whether this pipeline stage counts it.
    """

    norms: Tensor
    write: tuple[Tensor, ...]
    groups: tuple[ProcessGroup, ...]
    owner: int
    ratio: float
    counted: bool


def find_rows(
    parts: Components, where: Plan, threshold: WeightRelative, norm_type: float
) -> tuple[list[Rows], list[Vector]]:
    """Find the rows of a step.

    Args:
        parts: the components, ``C`` of them.
        where: where their gradients are.
        threshold: ratio and floor.
        norm_type: order of the norms.

    Returns:
        What is whole on this rank, and vectors that are not.

    Raises:
        GradientError: if rows are not whole on a rank, or a gradient is of a kind without rows.
    """
    whole: list[Rows] = []
    vectors: list[Vector] = []
    for parameter, piece, slot in where.entries:
        owner = where.owners[slot] if slot >= 0 else -1 - slot
        kept, grad = count_kept(parts[owner], piece), parameter.grad
        _refuse(parameter, grad, piece, kept)
        groups = where.spread[slot] if slot >= 0 else piece.spread()
        if groups and not kept:
            ratio = threshold.ratio_of(parts[owner])
            vectors.append(
                _vector(parameter, grad, piece, groups, owner, ratio=ratio, counted=slot >= 0, norm_type=norm_type)
            )
            continue
        for found in _whole(parts[owner], piece, parameter.detach(), grad, threshold, norm_type):
            whole.append(replace(found, owner=owner, slot=slot))
    return whole, vectors


def _refuse(parameter: Tensor, grad: Tensor | None, piece: Piece, kept: int) -> None:
    """Refuse what has no whole rows here."""
    why = ""
    if kept and parameter.dim() != len(piece.shape):
        why = "is kept flat by FSDP1, which cuts rows wherever a rank's share ends; use fully_shard (FSDP2)"
    elif isinstance(parameter, DTensor):
        mesh = parameter.device_mesh
        within = [
            placement
            for dim, placement in enumerate(parameter.placements)
            if placement.is_shard() and mesh.size(dim) > 1 and getattr(placement, "dim", 0) >= kept > 0
        ]
        if within:
            why = f"is placed as {parameter.placements}, which splits rows among ranks; shard dimension 0"
        elif isinstance(grad, DTensor) and grad.placements != parameter.placements:
            why = (
                f"is placed as {parameter.placements} and its gradient as {grad.placements}; redistribute the gradient "
                "to the parameter's placements"
            )
    elif (
        grad is not None
        and grad.layout is not torch.strided
        and (grad.layout is not torch.sparse_coo or grad.sparse_dim() != 1)
    ):
        why = f"has a gradient of layout {grad.layout}, whose rows are not at hand; use dense ones"
    if why:
        raise GradientError(
            f"the rows of '{piece.name}' cannot be clipped: it {why}, or WeightRelative(per='component')"
        )


def _whole(
    part: Component, piece: Piece, weight: Tensor, grad: Tensor | None, threshold: WeightRelative, norm_type: float
) -> Iterator[Rows]:
    if grad is None or grad.layout is torch.strided:
        for write, found in units(part, piece, weight, grad, threshold, norm_type):
            yield Rows(units=found, write=write, owner=0, slot=0)
        return
    together = grad.coalesce()  # a row that is stored several times is their sum, and so is its norm
    ((_, found),) = units(part, piece, weight, None, threshold, norm_type)
    dims = tuple(range(count_kept(part, piece), weight.dim()))
    norms = norms_of(together.values(), dims, norm_type)
    places = None
    if count_kept(part, piece):
        norms = found.limits.new_zeros(found.limits.shape, dtype=norms.dtype).index_copy(
            0, together.indices()[0], norms
        )
        places = grad._indices()[0]
    yield Rows(
        units=Units(norms=norms, limits=found.limits.to(norms)), write=grad._values(), places=places, owner=0, slot=0
    )


def _vector(
    parameter: Tensor,
    grad: Tensor | None,
    piece: Piece,
    groups: tuple[ProcessGroup, ...],
    owner: int,
    *,
    ratio: float,
    counted: bool,
    norm_type: float,
) -> Vector:
    views = () if grad is None else piece.of(grad)

    def norm(tensors: Sequence[Tensor]) -> Tensor:
        each = [norms_of(tensor, tuple(range(tensor.dim())), norm_type).flatten() for tensor in tensors]
        dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
        if not each:
            return torch.zeros((), dtype=dtype, device=parameter.device)
        total: Tensor = torch.linalg.vector_norm(torch.cat(each), norm_type)
        return total

    return Vector(
        norms=torch.stack([norm(views), norm(piece.of(parameter.detach()))]),
        write=views,
        groups=groups,
        owner=owner,
        ratio=ratio,
        counted=counted,
    )
