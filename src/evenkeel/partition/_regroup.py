"""One regrouping rule: coarser partitions merge the components of the fine one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Literal, TypeVar

from evenkeel.errors import ComponentError, unknown_name
from evenkeel.partition._component import Component, Piece
from evenkeel.partition._components import Components

__all__ = ["By", "regroup"]

By = Literal["tensor", "module", "role", "layer", "global"] | Callable[[Component], Hashable]

_KEYS: dict[str, Callable[[Component], Hashable]] = {
    "module": lambda part: part.pieces[0].name.rpartition(".")[0],
    "role": lambda part: part.role,
    "layer": lambda part: (part.stack, part.layer),
    "global": lambda part: "global",
}

T = TypeVar("T")


def regroup(parts: Components, by: By) -> Components:
    """Merge the components of the fine partition that ``by`` puts together.

    Args:
        parts: the fine partition.
        by: see :func:`evenkeel.components`.

    Returns:
        The merged components, in the order of their first members; the same object for the same ``parts`` and name.

    Raises:
        ComponentError: if ``by`` is unknown, raises, returns something unhashable, or makes groups that read alike.
    """
    if by == "tensor":
        return parts
    if isinstance(by, str) and by not in _KEYS:
        raise ComponentError(unknown_name("partition", by, ["tensor", *_KEYS]))
    if isinstance(by, str):
        if ("regroup", by) not in parts.memory:
            parts.memory["regroup", by] = _regroup(parts, by, _KEYS[by])
        known: Components = parts.memory["regroup", by]
        return known
    return _regroup(parts, by, by)


def _regroup(parts: Components, by: By, key: Callable[[Component], Hashable]) -> Components:
    groups: dict[Hashable, list[Component]] = {}
    for part in parts:
        try:
            groups.setdefault(key(part), []).append(part)
        except Exception as error:
            raise ComponentError(
                f"the grouping function failed on component '{part.name}' ({error}); it must return something hashable "
                "for every component"
            ) from error
    labels = [_label(by, group, members) for group, members in groups.items()]
    for label, count in Counter(labels).items():
        if count > 1:  # results go by name: one group would hide the other
            raise ComponentError(
                f"the grouping function returned different values that all read '{label}'; make them differ as text"
            )
    return Components([_merged(label, members) for label, members in zip(labels, groups.values(), strict=True)])


def _label(by: By, group: Hashable, members: list[Component]) -> str:
    if by == "layer":
        stack, layer = members[0].stack, members[0].layer
        where = "outside" if layer is None else f"layer.{layer}"
        return f"{stack}.{where}" if stack else where
    return str(group)


def _merged(label: str, members: list[Component]) -> Component:
    """Keep the role, layer and kind that all members share, else None."""
    size = sum(part.size for part in members)
    return Component(
        name=label,
        path=label,
        stack=_shared([part.stack for part in members]),
        layer=_shared([part.layer for part in members]),
        role=_shared([part.role for part in members]),
        kind=_shared([part.kind for part in members]),
        shape=(size,),
        size=size,
        aliases=tuple(alias for part in members for alias in part.aliases),
        shared=all(part.shared for part in members),
        pieces=_joined([piece for part in members for piece in part.pieces]),
    )


def _joined(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Put the cuts of a parameter together where the group has them all: one view is cheaper than many."""
    owned: Counter[int] = Counter()
    for piece in pieces:
        owned[id(piece.tensor())] += piece.size
    joined: dict[object, Piece] = {}
    for piece in pieces:
        if owned[id(piece.parameter)] == math.prod(piece.shape):
            joined.setdefault(id(piece.parameter), replace(piece, spans=(), cut=""))
        else:
            joined[id(piece.parameter), piece.spans] = piece
    return tuple(joined.values())


def _shared(values: Sequence[T | None]) -> T | None:
    return values[0] if all(value == values[0] for value in values) else None
