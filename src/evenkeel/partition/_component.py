"""A component: what is clipped together, and where its entries are."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor

from evenkeel.errors import ComponentError
from evenkeel.partition._flat import FlatShard
from evenkeel.partition._shard import Block, local_blocks, sharding_groups
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
        flat: which entries this rank's parameter holds, where FSDP1 made a flat run of them; None elsewhere.
    """

    name: str
    spans: tuple[Span, ...] = ()
    cut: str = ""
    shape: tuple[int, ...]
    parameter: Tensor | None = field(default=None, repr=False, compare=False)
    flat: FlatShard | None = field(default=None, repr=False, compare=False)

    @property
    def size(self) -> int:
        """Number of entries, over all ranks."""
        runs = {span.dim: span.size for span in self.spans}
        return math.prod([runs.get(dim, length) for dim, length in enumerate(self.shape)])

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

    def spread(self) -> tuple[ProcessGroup, ...]:
        """Return the process groups whose ranks hold different entries of the parameter; none where it is whole here.

        Returns:
            One group for each dimension of its mesh that shards it over more than one rank.

        Raises:
            ComponentError: if the components are not bound to a model.
        """
        return sharding_groups(self.tensor()) if self.flat is None else self.flat.groups

    def of(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Return the entries that this owns of a tensor of the parameter's shape, as views and never as copies.

        Args:
            tensor: the parameter, its gradient, or an optimizer's state of it; of a sharded one this rank's entries
                are returned.

        Returns:
            One view; of a sharded tensor none or several.

        Raises:
            ComponentError: if the tensor has not the parameter's shape, as when the model was wrapped or sharded after
                the components were found.
        """
        expected = self.shape if self.flat is None else (self.flat.stop - self.flat.start,)
        if tensor.shape != expected:
            raise ComponentError(_MISFIT.format(self.name, tuple(tensor.shape), expected))
        if isinstance(tensor, DTensor):  # wherever the entries of one that is not cut lie in the whole
            return _within(local_blocks(tensor), self.spans) if self.spans else (tensor.to_local(),)
        if self.flat is not None and self.spans:
            return _within(self.flat.blocks(tensor), self.spans)
        return (views(tensor, self.spans),)


_MISFIT = (
    "'{}' has entries of shape {} on this rank, but its component was found with {}; the model was wrapped, sharded or "
    "resized after its components were found: call evenkeel.components(model) again, on the model as it is trained"
)


def _within(blocks: Iterable[Block], spans: tuple[Span, ...]) -> tuple[Tensor, ...]:
    return tuple(view for block, begin in blocks for view in shard_views(block, spans, begin))


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
