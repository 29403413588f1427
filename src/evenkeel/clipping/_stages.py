"""What the stages of a pipeline must know of each other before they can speak of the whole model."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed import ProcessGroup

from evenkeel.errors import ComponentError, GradientError
from evenkeel.partition import Components, Span

__all__ = ["Stages", "exchange"]


@dataclass(frozen=True, kw_only=True)
class Stages:
    """This rank's components among those of all stages.

    Attributes:
        group: the ranks that hold the stages.
        joined: for every component of this rank its place among the components that several stages have a part of;
            None where it lives here alone.
        width: number of components that several stages have a part of.
        sizes: entries of every component of this rank, those on other stages included.
        elsewhere: number of components that this rank has no part of, and of their entries.
        counted_elsewhere: pairs (component, piece) of this rank that another stage counts: tied parameters, of which
            every stage has a copy.
    """

    group: ProcessGroup
    joined: tuple[int | None, ...]
    width: int
    sizes: tuple[int, ...]
    elsewhere: tuple[int, int]
    counted_elsewhere: frozenset[tuple[int, int]]


# Of a component: its name, and of each of its pieces what tells it from others, its shape and its number of entries.
_Told = tuple[str, tuple[tuple[tuple[str, tuple[Span, ...]], tuple[int, ...], int], ...]]


def exchange(parts: Components, group: ProcessGroup) -> Stages:
    """Tell all stages which components this one has, and learn theirs. A collective call, made once.

    Parameters of one name are one tied parameter, of which every stage has a copy with the same gradient.

    Args:
        parts: this rank's components.
        group: the ranks that hold the stages.

    Returns:
        What this rank must know.

    Raises:
        GradientError: if this rank is not in the group.
        ComponentError: if stages call different parameters by one name.
    """
    rank = dist.get_rank(group)
    if rank < 0:
        raise GradientError(
            "this rank is not in the process group that was passed; pass the group of the pipeline's stages that this "
            "rank belongs to, or none"
        )
    own: list[_Told] = [
        (part.name, tuple(((piece.name, piece.spans), piece.shape, piece.size) for piece in part.pieces))
        for part in parts
    ]
    everyone: list[list[_Told]] = [[]] * dist.get_world_size(group)
    dist.all_gather_object(everyone, own, group=group)
    counted: dict[object, int] = {}  # a tied parameter is counted by the first stage that has it
    shapes: dict[str, tuple[int, ...]] = {}
    holders: dict[str, set[int]] = {}
    sizes: dict[str, int] = {}
    for stage, theirs in enumerate(everyone):
        for name, pieces in theirs:
            holders.setdefault(name, set()).add(stage)
            sizes.setdefault(name, 0)
            for piece, shape, number in pieces:
                _refuse_other_shape(piece[0], shape, shapes.setdefault(piece[0], shape))
                if counted.setdefault(piece, stage) == stage:
                    sizes[name] += number
    several = [name for name, stages in holders.items() if len(stages) > 1]
    position = {name: index for index, name in enumerate(several)}
    mine = {name for name, _ in own}
    others = [size for name, size in sizes.items() if name not in mine]
    return Stages(
        group=group,
        joined=tuple(position.get(part.name) for part in parts),
        width=len(several),
        sizes=tuple(sizes[part.name] for part in parts),
        elsewhere=(len(others), sum(others)),
        counted_elsewhere=frozenset(
            (index, place)
            for index, (_, pieces) in enumerate(own)
            for place, (piece, _, _) in enumerate(pieces)
            if counted[piece] != rank
        ),
    )


def _refuse_other_shape(name: str, shape: tuple[int, ...], first: tuple[int, ...]) -> None:
    if shape != first:
        raise ComponentError(
            f"one stage has a parameter '{name}' of shape {first}, another one of shape {shape}; on every stage, "
            "parameters must have the names of the whole model, or they are taken for copies of one tied parameter: "
            "keep the layers of a stage under their own numbers, as in a ModuleDict"
        )
