"""What a running threshold remembers of every component, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from evenkeel.clipping.thresholds._check import refuse_mismatch, take_tensor
from evenkeel.errors import ThresholdError
from evenkeel.partition import Components

__all__ = ["Blank", "Records"]


@dataclass(frozen=True, kw_only=True)
class Blank:
    """What is written for a component that was never seen.

    Attributes:
        value: the number, at every place.
        width: how many numbers a component has; None for one, without a dimension of its own.
        counts: whether they are whole numbers, which are kept in int64.
    """

    value: float
    width: int | None = None
    counts: bool = False

    def rows(self, count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return the rows of ``count`` new components."""
        return torch.full(self.shape(count), self.value, device=device, dtype=self.dtype(dtype))

    def shape(self, count: int) -> tuple[int, ...]:
        """Return the shape of ``count`` rows."""
        return (count,) if self.width is None else (count, self.width)

    def dtype(self, wanted: torch.dtype) -> torch.dtype:
        """Return the dtype of the rows, where floating numbers are ``wanted``."""
        return torch.int64 if self.counts else wanted


@final
class Records:
    """Tables with one row for each component, on the device of the norms.

    Rows belong to names. When the components change, an index made on the host moves the rows, once; rows of components
    that went away are put aside until they return. Between changes the tensors stay the same objects and change in
    place, as CUDA graphs need.
    """

    def __init__(self, owner: str, **blanks: Blank) -> None:
        """Keep one table for each of ``blanks``; messages name the ``owner``."""
        self._owner = owner
        self._blanks = blanks
        self._parts: Components | None = None
        self._names: tuple[str, ...] | None = None
        self._held: dict[str, Tensor] | None = None  # the rows of _names, in that order
        self._place = (torch.device("cpu"), torch.float32)
        self._aside: tuple[str, ...] = ()  # the names of all other rows
        self._stored = {key: blank.rows(0, *self._place) for key, blank in blanks.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parts": None}  # names are enough to find the rows again

    def bind(self, parts: Components) -> None:
        """Learn which components the norms of the next steps belong to.

        Args:
            parts: the components, ``C`` of them.
        """
        if parts is self._parts:
            return
        self._parts = parts
        self.bind_names(tuple(part.name for part in parts))

    def bind_names(self, names: tuple[str, ...]) -> None:
        """Learn the names alone, where nobody has the components.

        Args:
            names: the components' names, ``C`` of them.
        """
        if names != self._names:
            self._put_aside()
            self._names = names

    def rows(self, norms: Tensor) -> dict[str, Tensor]:
        """Return the tables of the components bound, to be changed in place.

        Args:
            norms: the norms, shape ``[C]``; they give the device, and the dtype, which is float32 at least.

        Returns:
            Tensors of ``C`` rows, by name of the table.

        Raises:
            ThresholdError: if ``norms`` are not those of the components bound.
        """
        refuse_mismatch(norms, None if self._names is None else len(self._names))
        place = (norms.device, torch.promote_types(norms.dtype, torch.float32))
        if self._held is None or self._place != place:
            self._put_aside()
            self._held = self._take(*place)
        return self._held

    def _put_aside(self) -> None:
        if self._held is not None:
            assert self._names is not None  # noqa: S101  rows are held for names
            self._stored = {key: torch.cat([rows, self._held[key]]) for key, rows in self._stored.items()}
            self._aside += self._names
            self._held = None

    def _take(self, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """Find the rows of the components bound, and begin those of new ones."""
        assert self._names is not None  # noqa: S101  rows() has refused it
        where = {name: row for row, name in enumerate(self._aside)}
        new = [name for name in self._names if name not in where]
        where.update({name: len(self._aside) + row for row, name in enumerate(new)})
        wanted = _index([where[name] for name in self._names], device)
        bound = set(self._names)
        rest = [name for name in self._aside if name not in bound]
        left = _index([where[name] for name in rest], device)
        held = {}
        for key, blank in self._blanks.items():
            old = self._stored[key].to(device, blank.dtype(dtype), non_blocking=True)
            table = torch.cat([old, blank.rows(len(new), device, dtype)])
            held[key] = table.index_select(0, wanted)
            self._stored[key] = table.index_select(0, left)
        self._aside = tuple(rest)
        self._place = (device, dtype)
        return held

    def state_dict(self) -> dict[str, Any]:
        """Return all rows, of components present and past, and whose they are; copies."""
        names, tables = list(self._aside), self._stored
        if self._held is not None and self._names is not None:
            names += self._names
            tables = {key: torch.cat([rows, self._held[key]]) for key, rows in tables.items()}
        return {"names": names, **{key: rows.clone() for key, rows in tables.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Forget all rows and take up others, before or after :meth:`bind`.

        Args:
            state: what :meth:`state_dict` returned.

        Raises:
            ThresholdError: if it holds other tables, or tables of another shape.
        """
        wanted = {"names", *self._blanks}
        if not isinstance(state, Mapping) or set(state) != wanted:
            given = sorted(map(str, state)) if isinstance(state, Mapping) else f"a {type(state).__name__}"
            raise ThresholdError(
                f"{self._owner} cannot load a state of {given}, because its own holds {sorted(wanted)}; pass what "
                "state_dict() of the same class returned"
            )
        names = state["names"]
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise ThresholdError(
                f"{self._owner} cannot load a state whose 'names' are no list of text; pass what state_dict() of the "
                "same class returned"
            )
        if len(set(names)) != len(names):
            raise ThresholdError(
                f"{self._owner} cannot load a state that names a component twice; pass what state_dict() of the same "
                "class returned"
            )
        self._stored = {
            key: take_tensor(
                self._owner, state, key, blank.shape(len(names)), dtype=torch.int64 if blank.counts else None
            )
            for key, blank in self._blanks.items()
        }
        self._aside = tuple(names)
        self._held = None


def _index(places: list[int], device: torch.device) -> Tensor:
    return torch.tensor(places, dtype=torch.int64, device="cpu").to(device, non_blocking=True)
