"""A component: what is clipped together, and where its entries are."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor
from torch.distributed.tensor import DTensor

from evenkeel.errors import ComponentError
from evenkeel.partition._shard import local_shard
from evenkeel.partition._span import Span, shard_views, views

__all__ = ["Component", "Kind", "Piece", "matches"]

Kind = Literal["weight", "bias"]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A parameter, or the cut of one that a component owns.

    Attributes:
        name: dotted name of the parameter.
        spans: the entries, at most one span for each dimension; none for the whole parameter.
        cut: how the parameter is cut, in the words of the rule; empty for the whole.
        shape: shape of the parameter.
        parameter: the tensor; None after unpickling, until it is bound to a model again.
    """

    name: str
    spans: tuple[Span, ...] = ()
    cut: str = ""
    shape: tuple[int, ...]
    parameter: Tensor | None = field(default=None, repr=False, compare=False)

    def tensor(self) -> Tensor:
        """Return the parameter.

        Returns:
            The tensor, whole.

        Raises:
            ComponentError: if the components are not bound to a model.
        """
        if self.parameter is None:
            raise ComponentError(
                f"the component of '{self.name}' is bound to no model, as after unpickling; call "
                "Components.bind(model) first"
            )
        return self.parameter

    def of(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Return the entries that this owns of a tensor of the parameter's shape, as views and never as copies.

        Args:
            tensor: the parameter, its gradient, or an optimizer's state of it; of a sharded one this rank's entries
                are returned.

        Returns:
            One view; of a sharded tensor none or several.
        """
        if not isinstance(tensor, DTensor):
            return (views(tensor, self.spans),)
        shard, offsets = local_shard(tensor)
        return shard_views(shard, self.spans, offsets)


@dataclass(frozen=True, kw_only=True)
class Component:
    """Gradient entries that are clipped together.

    Attributes:
        name: the dotted name of its parameter, with ``[query]`` and the like behind it for a cut part; of a merged
            component, what its members were grouped by.
        path: a name that reads alike on every architecture: ``layer.3.query.weight``, ``embedding.word``.
        stack: ``"encoder"`` or ``"decoder"`` where a model has both, the name of a tower where it has several, else
            None.
        layer: index of its block, 0 nearest the embeddings; None outside the blocks.
        role: what it does in the model, one of ``ROLES``; None where the members of a merged component differ.
        kind: ``"weight"`` or ``"bias"``; None where the members of a merged component differ.
        shape: shape of its entries; ``(size,)`` for a merged component.
        size: number of entries.
        shared: whether several layers of the model use it.
        aliases: the other dotted names of a tied parameter.
        pieces: where its entries are.
    """

    name: str
    path: str
    stack: str | None
    layer: int | None
    role: str | None
    kind: Kind | None
    shape: tuple[int, ...]
    size: int
    shared: bool = False
    aliases: tuple[str, ...] = ()
    pieces: tuple[Piece, ...] = field(repr=False)

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The tensors that it owns entries of."""
        return tuple(piece.tensor() for piece in self.pieces)

    @property
    def cut(self) -> str:
        """How its parameter is cut, in the words of the rule; empty where it owns whole parameters."""
        return next((piece.cut for piece in self.pieces if piece.cut), "")

    def gradients(self) -> tuple[Tensor, ...]:
        """Return its gradients, as views where it owns a part of a tensor; what has no gradient is left out.

        Of sharded gradients (DTensor) these are the entries of this rank.
        """
        found: list[Tensor] = []
        for piece in self.pieces:
            gradient = piece.tensor().grad
            found.extend(() if gradient is None else piece.of(gradient))
        return tuple(found)


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
