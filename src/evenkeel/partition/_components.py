"""The sequence of components that a model is made of."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

from torch import nn

from evenkeel.errors import ComponentError
from evenkeel.partition._component import Component, Kind, Piece, matches
from evenkeel.partition._flat import flat_shards
from evenkeel.partition._names import plain_parameters

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Components"]


class Components(Sequence[Component]):
    """The components of a model, in the order of its parameters.

    Pickled, they are names and places without tensors; :meth:`bind` ties them to a model again.

    Attributes:
        memory: what others computed of these components and want to find again, by a key of theirs; it goes when the
            components go, and is neither compared nor pickled.

    Example:
        >>> import torch
        >>> from evenkeel.partition import components
        >>> parts = components(torch.nn.Linear(3, 1))
        >>> [(part.name, part.size) for part in parts]
        [('weight', 3), ('bias', 1)]
    """

    def __init__(self, parts: Sequence[Component]) -> None:
        """Hold ``parts``, which must have names of their own and not share entries: they would be clipped twice."""
        self._parts = tuple(parts)
        self.memory: dict[Hashable, Any] = {}
        _refuse_overlap(self._parts)
        _refuse_namesakes(self._parts)

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
        return f"Components({len(self)} components, {self.size:,} entries)"

    def __rich__(self) -> Table:
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=repr(self))
        table.add_column("path", no_wrap=True)
        table.add_column("role")
        table.add_column("shape", justify="right")
        table.add_column("size", justify="right")
        table.add_column("cut", overflow="fold")
        for part in self._parts:
            shape = " x ".join(map(str, part.shape))
            table.add_row(escape(part.path), part.role or "", shape, f"{part.size:,}", escape(part.cut))
        return table

    def __copy__(self) -> Components:
        return self  # nothing in it can change; going through pickling would unbind it

    def __getstate__(self) -> dict[str, Any]:
        unbound = [
            replace(part, pieces=tuple(replace(piece, parameter=None, flat=None) for piece in part.pieces))
            for part in self._parts
        ]
        return {"_parts": tuple(unbound)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._parts = state["_parts"]
        self.memory = {}

    @property
    def size(self) -> int:
        """Number of entries of all components together."""
        return sum(part.size for part in self._parts)

    @property
    def depth(self) -> int:
        """Number of blocks: one more than the highest layer, 0 where there are none."""
        return max((part.layer + 1 for part in self._parts if part.layer is not None), default=0)

    @property
    def unclaimed(self) -> Components:
        """The components whose role no rule knows."""
        return self.select(role="other")

    def select(
        self,
        pattern: str = "*",
        *,
        role: str | None = None,
        layer: int | None = None,
        stack: str | None = None,
        kind: Kind | None = None,
    ) -> Components:
        """Return the components that fit all that is given, in order.

        Args:
            pattern: a role, or a shell pattern on the path.
            role: keep this role.
            layer: keep this layer.
            stack: keep this stack.
            kind: keep this kind.

        Returns:
            The components that fit; none is no error here.
        """
        wanted = {"role": role, "layer": layer, "stack": stack, "kind": kind}
        return Components(
            [
                part
                for part in self._parts
                if matches(part, pattern)
                and all(value is None or getattr(part, name) == value for name, value in wanted.items())
            ]
        )

    def bind(self, model: nn.Module) -> Components:
        """Tie the same components to the parameters of ``model``, which must have them all.

        Args:
            model: a model of the same structure, wrapped or not.

        Returns:
            The components, bound; these here stay as they are.

        Raises:
            ComponentError: if the model lacks a parameter, or one has another shape.
        """
        own = {name: parameter for names, parameter in plain_parameters(model) for name in names}
        shards = flat_shards(model)

        def bound(piece: Piece) -> Piece:
            if piece.name not in own:
                raise ComponentError(
                    f"{type(model).__name__} has no parameter '{piece.name}', so these components are of another "
                    "model; ask for evenkeel.components(model)"
                )
            flat = shards.get(id(own[piece.name]))
            shape = tuple(own[piece.name].shape) if flat is None else flat.shape
            if shape != piece.shape:
                raise ComponentError(
                    f"parameter '{piece.name}' has the shape {shape} here, and had {piece.shape} where the components "
                    "were found; they are of a model of another size: ask for evenkeel.components(model)"
                )
            return replace(piece, parameter=own[piece.name], flat=flat)

        return Components([replace(part, pieces=tuple(map(bound, part.pieces))) for part in self._parts])


def _refuse_namesakes(parts: Sequence[Component]) -> None:
    seen: set[str] = set()
    for part in parts:
        if part.name in seen:
            raise ComponentError(
                f"two components are called '{part.name}', as of two models, and names are what results and states go "
                "by; clip each model's components on their own"
            )
        seen.add(part.name)


def _refuse_overlap(parts: Sequence[Component]) -> None:
    """Different cuts of one parameter count as overlapping: the parts of one and the same cut alone are known apart."""
    owners: dict[tuple[int, object], str] = {}
    cuts: dict[int, tuple[str, str]] = {}
    for part in parts:
        for piece in part.pieces:
            if piece.parameter is None:
                continue
            key = id(piece.parameter)
            other = owners.get((key, piece.spans))
            cut, first = cuts.setdefault(key, (piece.cut, part.name))
            if other is None and cut != piece.cut:
                other = first
            if other is not None:
                raise ComponentError(
                    f"components '{other}' and '{part.name}' share entries of a tensor, which would be clipped twice; "
                    "keep one of them"
                )
            owners[key, piece.spans] = part.name
