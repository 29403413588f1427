"""The gradients of a step as plain tensors of this rank: what to take the norm of, and what to scale."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from evenkeel.clipping._partial import settled
from evenkeel.clipping._plan import Plan
from evenkeel.errors import GradientError
from evenkeel.partition import Piece

__all__ = ["Gradients", "collect", "weights"]


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """``G`` plain tensors; those of a list lie behind one another in the order of the plan's entries.

    Attributes:
        read: what the norms are taken of; dense, and real unless the norm needs no complex numbers.
        slots: the slot of the plan that each of ``read`` is counted in.
        write: what is scaled, in place; the same tensors but for sparse, complex and partly reduced gradients.
        owners: the component that each of ``write`` belongs to.
    """

    read: list[Tensor] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    write: list[Tensor] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)


def collect(plan: Plan, norm_type: float) -> Gradients:
    """Find the gradients of a step.

    Args:
        plan: where they are.
        norm_type: order of the norm that will be taken.

    Returns:
        The tensors; none for a parameter without a gradient.

    Raises:
        GradientError: if no gradient is there, or one is of a kind that cannot be clipped.
    """
    found = Gradients()
    missing = True
    moved: dict[int, DTensor] | None = None
    compiling = torch.compiler.is_compiling()
    for parameter, piece, slot in plan.entries:
        grad = parameter.grad
        if grad is None:
            continue
        missing = False
        owner = plan.owners[slot] if slot >= 0 else -1 - slot
        if not compiling and _is_ordinary(grad, piece):
            found.write.append(grad)
            found.owners.append(owner)
            if slot >= 0:
                found.read.append(grad)
                found.slots.append(slot)
            continue
        read, write = _plain(parameter, grad, piece, norm_type)
        if isinstance(grad, DTensor) and isinstance(parameter, DTensor) and grad.placements != parameter.placements:
            # What is stored here is scaled; the norm is that of the sum of all shares.
            moved = settled(parameter for parameter, _, _ in plan.entries) if moved is None else moved
            read = piece.of(moved[id(parameter)])
        found.write.extend(write)
        found.owners.extend([owner] * len(write))
        if slot >= 0:
            found.read.extend(read)
            found.slots.extend([slot] * len(read))
    if missing and plan.alone:  # where others wait for this rank's share of the sum, it must not leave them waiting
        raise GradientError(
            f"none of the {len(plan.names)} components has a gradient; clip after backward() and before zero_grad(), "
            "components of the model that was trained, found after it was wrapped or sharded"
        )
    return found


def weights(plan: Plan) -> tuple[list[Tensor], list[int]]:
    """Find the weights that the gradients belong to.

    Args:
        plan: where they are.

    Returns:
        This rank's entries of them, as plain tensors, and the slot that each is counted in.
    """
    read: list[Tensor] = []
    slots: list[int] = []
    for parameter, piece, slot in plan.entries:
        if slot >= 0:
            parts = piece.of(parameter.detach())
            read.extend(part.abs() if part.is_complex() else part for part in parts)
            slots.extend([slot] * len(parts))
    return read, slots


def _is_ordinary(grad: Tensor, piece: Piece) -> bool:
    """Say whether it is a whole dense gradient, which needs no closer look: nearly all of thousands in every step."""
    return (
        type(grad) is Tensor
        and not piece.spans
        and piece.flat is None
        and grad.layout is torch.strided
        and grad.is_contiguous()
        and grad.shape == piece.shape
        and not grad.dtype.is_complex
        and not grad.is_inference()
    )


def _plain(
    parameter: Tensor, grad: Tensor, piece: Piece, norm_type: float
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return what to take the norm of and what to scale, as tensors of this rank alone."""
    if isinstance(grad, DTensor):
        local = _of_shards(parameter, grad, piece)
        return local, local
    if grad.layout is not torch.strided:
        return _of_sparse(parameter, grad, piece, norm_type)
    if not torch.compiler.is_compiling() and grad.is_inference():  # which cannot be traced
        raise GradientError(
            f"the gradient of '{piece.name}' was made under torch.inference_mode() and cannot be changed outside it; "
            "run backward() outside inference mode"
        )
    if _is_expanded(grad):  # several entries share memory, which cannot be scaled in place
        grad = parameter.grad = grad.contiguous()
    if grad.is_complex():
        real = tuple(torch.view_as_real(part.conj() if part.is_conj() else part) for part in piece.of(grad))
        return (real if norm_type == 2.0 else tuple(part.abs() for part in piece.of(grad))), real
    whole = piece.of(grad)
    return whole, whole


def _is_expanded(grad: Tensor) -> bool:
    return any(step == 0 and size > 1 for step, size in zip(grad.stride(), grad.shape, strict=True))


def _of_sparse(
    parameter: Tensor, grad: Tensor, piece: Piece, norm_type: float
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Scale the values as they are stored; the norm is that of their sums, where an entry is stored several times."""
    if piece.spans:
        raise GradientError(
            f"the gradient of '{piece.name}' is sparse, but '{piece.cut}' cuts its parameter; use sparse=False there, "
            "or a partition that keeps the parameter whole"
        )
    if grad.layout is not torch.sparse_coo:
        return _real(grad.values(), grad.values(), norm_type)
    if _is_expanded(grad._values()):
        grad = parameter.grad = grad.coalesce()
    # values() refuses what is not coalesced; scaling every stored value scales their sum.
    return _real(grad.coalesce().values(), grad._values(), norm_type)


def _real(read: Tensor, write: Tensor, norm_type: float) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return complex entries as what the norm can be taken of, and as what can be scaled by real numbers."""
    if not read.is_complex():
        return (read,), (write,)
    return (torch.view_as_real(read) if norm_type == 2.0 else read.abs(),), (torch.view_as_real(write),)


def _of_shards(parameter: Tensor, grad: DTensor, piece: Piece) -> tuple[Tensor, ...]:
    """Return the entries that are stored here, which of a partial gradient are shares of them."""
    if not isinstance(parameter, DTensor):
        raise GradientError(
            f"the gradient of '{piece.name}' is placed as {grad.placements}, but its parameter is a plain tensor "
            "on every rank; make both DTensors, or both plain tensors"
        )
    if _is_expanded(grad.to_local()):
        parameter.grad = grad.contiguous()
        return piece.of(parameter.grad)
    return piece.of(grad)
