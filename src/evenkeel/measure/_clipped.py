"""What a clipping result says of each component, whatever partition it was clipped in."""

from __future__ import annotations

import torch
from torch import Tensor

from evenkeel.clipping import ClipResult
from evenkeel.measure._records import UNKNOWN
from evenkeel.partition import Components

__all__ = ["coefficients_of", "norms_of"]

_NAMES = ("telemetry", "names")  # kept in the components' memory


def coefficients_of(parts: Components, result: ClipResult, clipped: Components) -> Tensor:
    """Return what the gradient of each component was multiplied by.

    Args:
        parts: the components asked for, ``C`` of them.
        result: what was clipped.
        clipped: the components that it was clipped in: the same ones, or coarser ones.

    Returns:
        Coefficients, shape ``[C]``; ``UNKNOWN`` of what none of those clipped contains.
    """
    if result.names == _names(parts):
        return result.coefficients
    places = _places(parts, result.names, clipped).to(result.coefficients.device, non_blocking=True)
    return torch.where(places < 0, UNKNOWN, result.coefficients[places.clamp(min=0)])


def norms_of(parts: Components, result: ClipResult) -> Tensor | None:
    """Return the norms before clipping of each component, for gradients that are gone.

    Args:
        parts: the components asked for, ``C`` of them.
        result: what was clipped.

    Returns:
        Norms, shape ``[C]``, or None where other components were clipped or norms of another order were taken.
    """
    return result.norms if result.names == _names(parts) and result.norm_type == 2.0 else None


def _names(parts: Components) -> tuple[str, ...]:
    if _NAMES not in parts.memory:
        parts.memory[_NAMES] = tuple(part.name for part in parts)
    names: tuple[str, ...] = parts.memory[_NAMES]
    return names


def _places(parts: Components, names: tuple[str, ...], clipped: Components) -> Tensor:
    """Return for each component the place of the one that contains it, -1 for none."""
    key = ("telemetry", names)
    if key not in parts.memory:
        place = {name: index for index, name in enumerate(names)}
        owners = {
            (piece.name, piece.spans): place.get(owner.name, -1) for owner in clipped for piece in owner.pieces
        }  # a coarse component names a parameter once, uncut, where it has all of its parts
        found = []
        for part in parts:
            places = {owners.get((piece.name, piece.spans), owners.get((piece.name, ()), -1)) for piece in part.pieces}
            found.append(places.pop() if len(places) == 1 else -1)
        parts.memory[key] = torch.tensor(found, dtype=torch.int64, device="cpu")
    known: Tensor = parts.memory[key]
    return known
