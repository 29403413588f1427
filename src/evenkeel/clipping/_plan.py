"""What stays the same from step to step: which gradient belongs where, and over which ranks norms are summed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup, get_process_group_ranks

from evenkeel.clipping._stages import Stages, exchange
from evenkeel.clipping.gpu import Segments
from evenkeel.errors import ComponentError
from evenkeel.partition import Component, Components, Piece, components

__all__ = ["Plan", "as_components", "plan"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Where the gradients of ``C`` components are found, and how their norms come together.

    A slot is what is summed before any communication: a component, or that part of one whose parameters are spread
    over the same ranks.

    Attributes:
        names: the components' names, ``C`` of them.
        entries: parameter, piece and slot, for all pieces; the slot is negative (``-1 - component``) where another
            stage counts the piece.
        owners: the component of every slot.
        spread: the process groups that every slot's entries are spread over.
        stages: what other pipeline stages hold; None where no process group was passed.
        indices: index tensors that were asked for, see :meth:`index`.
        segments: tables for the multi-tensor kernels, by device, number of results and owners of the tensors.
    """

    names: tuple[str, ...]
    entries: tuple[tuple[Tensor, Piece, int], ...]
    owners: tuple[int, ...]
    spread: tuple[tuple[ProcessGroup, ...], ...]
    stages: Stages | None
    indices: dict[tuple[tuple[int, ...], torch.device], Tensor] = field(default_factory=dict, repr=False)
    segments: dict[tuple[torch.device, int, tuple[int, ...]], list[Segments]] = field(default_factory=dict, repr=False)

    def index(self, places: Sequence[int], device: torch.device) -> Tensor:
        """Return ``places`` as an index tensor, copied to the device the first time only (and so in no CUDA graph)."""
        key = (tuple(places), device)
        if torch.compiler.is_compiling() or key not in self.indices:
            self.indices[key] = torch.tensor(key[0], dtype=torch.int64, device="cpu").to(device, non_blocking=True)
        return self.indices[key]

    @property
    def alone(self) -> bool:
        """Whether everything lives on this rank, so that slots are components and nothing is communicated."""
        return self.stages is None and not any(self.spread)


def plan(parts: Components, group: ProcessGroup | None) -> Plan:
    """Return the plan for ``parts``, made once and remembered with them.

    Args:
        parts: the components.
        group: the process group of the pipeline's stages; making the plan is then a collective call.

    Returns:
        The plan.

    Raises:
        ComponentError: if there are no components, or they are bound to no model.
    """
    if torch.compiler.is_compiling():  # traced once and for all: there is nothing to remember
        return _plan(parts, group)
    known: Plan | None = parts.memory.get(("clipping", group))
    if known is None:
        known = parts.memory["clipping", group] = _plan(parts, group)
        _warn_of_empty(parts)
    return known


def _plan(parts: Components, group: ProcessGroup | None) -> Plan:
    if not parts:
        raise ComponentError(
            "there are no components to clip: the selection fits nothing, or the model has no trainable parameter; "
            "look at evenkeel.components(model)"
        )
    stages = None if group is None else exchange(parts, group)
    slots: dict[tuple[int, tuple[ProcessGroup, ...]], int] = {}
    entries: list[tuple[Tensor, Piece, int]] = []
    first: dict[tuple[int, ...], ProcessGroup] = {}  # of those with the same ranks: meshes make their own groups
    for index, part in enumerate(parts):
        for place, piece in enumerate(part.pieces):
            # Every component has a slot, and on all ranks the same ones, whatever gradients there are.
            groups = tuple(first.setdefault(tuple(get_process_group_ranks(ranks)), ranks) for ranks in piece.spread())
            slot = slots.setdefault((index, groups), len(slots))
            elsewhere = stages is not None and (index, place) in stages.counted_elsewhere
            entries.append((piece.tensor(), piece, -1 - index if elsewhere else slot))
    return Plan(
        names=tuple(part.name for part in parts),
        entries=tuple(entries),
        owners=tuple(owner for owner, _ in slots),
        spread=tuple(groups for _, groups in slots),
        stages=stages,
    )


def as_components(parts: Components | nn.Module | Iterable[Component]) -> Components:
    """Take what users pass as components.

    Args:
        parts: components, a model, or an iterable of components.

    Returns:
        The components.

    Raises:
        ComponentError: if it is something else: tensors, or a generator that was used up.
    """
    if isinstance(parts, Components):
        return parts
    if isinstance(parts, nn.Module):
        return components(parts)
    if isinstance(parts, Tensor):
        raise ComponentError(_TENSORS.format(f"a tensor of shape {tuple(parts.shape)}"))
    try:
        listed = list(parts)
    except TypeError as error:
        raise ComponentError(_TENSORS.format(f"a {type(parts).__name__}")) from error
    if not listed:
        raise ComponentError(
            f"the {type(parts).__name__} given as components is empty; a generator is empty once it was used: pass "
            "evenkeel.components(model), which can be used again and again"
        )
    if all(isinstance(part, Component) for part in listed):
        return Components(listed)
    first = next(part for part in listed if not isinstance(part, Component))
    if isinstance(first, Tensor) and not (isinstance(first, nn.Parameter) or first.requires_grad):
        raise ComponentError(_TENSORS.format("tensors that are no parameters, gradients by the look of them"))
    raise ComponentError(_TENSORS.format(f"a {type(parts).__name__} that holds a {type(first).__name__}"))


_TENSORS = (
    "clipping was given {}; it needs the model or evenkeel.components(model), because tensors alone do not say which "
    "of their entries belong together"
)


def _warn_of_empty(parts: Components) -> None:
    empty = [part.name for part in parts if part.size == 0]
    if empty:
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        warnings.warn(
            f"{len(empty)} components have no entries and are never clipped: {', '.join(empty[:3])}{more}", stacklevel=5
        )
