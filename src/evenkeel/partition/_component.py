"""A component, and the sequence of them that a model is made of."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, overload

from torch import Tensor

from evenkeel.errors import ComponentError

__all__ = ["Component", "Components", "matches"]


@dataclass(frozen=True, kw_only=True)
class Component:
    """Gradient entries that are clipped together.

    Attributes:
        name: the dotted name of its parameter; of a merged component, what its members were grouped by.
        path: a name that reads alike on every architecture: ``layer.3.query.weight``, ``embedding.word``.
        stack: ``"encoder"`` or ``"decoder"`` where a model has both, else None.
        layer: index of its block, 0 nearest the embeddings; None outside the blocks.
        role: what it does in the model, one of ``ROLES``; None where the members of a merged component differ.
        kind: ``"weight"`` or ``"bias"``; None where the members of a merged component differ.
        shape: shape of the parameter; ``(size,)`` for a merged component.
        size: number of entries.
        aliases: the other dotted names of a tied parameter.
        parameters: the tensors whose gradients it owns.
    """

    name: str
    path: str
    stack: str | None
    layer: int | None
    role: str | None
    kind: Literal["weight", "bias"] | None
    shape: tuple[int, ...]
    size: int
    aliases: tuple[str, ...] = ()
    parameters: tuple[Tensor, ...] = field(repr=False, compare=False)


def matches(component: Component, pattern: str) -> bool:
    """Say whether ``pattern`` is the component's role, or a shell pattern that fits its path.

    Args:
        component: the component.
        pattern: a role, or a pattern such as ``layer.3.*``.

    Returns:
        Whether it fits.

    Example:
        >>> import torch
        >>> from evenkeel.partition import components
        >>> weight = components(torch.nn.Linear(2, 2))[0]
        >>> matches(weight, "other"), matches(weight, "w*"), matches(weight, "query")
        (True, True, False)
    """
    return component.role == pattern or fnmatch.fnmatchcase(component.path, pattern)


class Components(Sequence[Component]):
    """The components of a model, in the order of its parameters.

    Example:
        >>> import torch
        >>> from evenkeel.partition import components
        >>> parts = components(torch.nn.Linear(3, 1))
        >>> [(part.name, part.size) for part in parts]
        [('weight', 3), ('bias', 1)]
    """

    def __init__(self, parts: Sequence[Component]) -> None:
        """Hold ``parts``, which must not share a tensor: it would be clipped twice."""
        self._parts = tuple(parts)
        owner: dict[int, str] = {}
        for part in self._parts:
            for parameter in part.parameters:
                if id(parameter) in owner:
                    raise ComponentError(
                        f"components '{owner[id(parameter)]}' and '{part.name}' share a tensor, which would be clipped "
                        "twice; keep one of them"
                    )
                owner[id(parameter)] = part.name

    @overload
    def __getitem__(self, index: int) -> Component: ...
    @overload
    def __getitem__(self, index: slice) -> Components: ...
    def __getitem__(self, index: int | slice) -> Component | Components:
        return Components(self._parts[index]) if isinstance(index, slice) else self._parts[index]

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Component]:
        return iter(self._parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Components) and self._parts == other._parts

    def __hash__(self) -> int:
        return hash(self._parts)

    def __repr__(self) -> str:
        size = sum(part.size for part in self._parts)
        return f"Components({len(self)} components, {size:,} entries)"

    @property
    def depth(self) -> int:
        """Number of blocks: one more than the highest layer, 0 where there are none."""
        return max((part.layer + 1 for part in self._parts if part.layer is not None), default=0)

    @property
    def unclaimed(self) -> Components:
        """The components whose role no rule knows."""
        return self.select(role="other")

    def select(self, pattern: str = "*", *, role: str | None = None, layer: int | None = None) -> Components:
        """Return the components that fit all that is given, in order.

        Args:
            pattern: a role, or a shell pattern on the path.
            role: keep this role.
            layer: keep this layer.

        Returns:
            The components that fit; none is no error here.
        """
        return Components(
            [
                part
                for part in self._parts
                if matches(part, pattern)
                and (role is None or part.role == role)
                and (layer is None or part.layer == layer)
            ]
        )
