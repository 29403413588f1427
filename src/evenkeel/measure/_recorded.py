"""A table of telemetry as arrays, for the measures that are functions of arrays."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evenkeel.measure._arrays import Floats

__all__ = ["Recorded"]

Whole = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What was recorded of ``C`` components at ``S`` steps.

    Attributes:
        steps: numbers of the recorded steps, rising, shape ``[S]``.
        components: the components' paths.
        sizes: numbers of their entries, shape ``[C]``; 0 where an older table does not tell.
        layers: their layers; None outside of layers.
        roles: their roles; None where there is none.
        table: the table.

    Example:
        >>> columns = {"step": [1, 2, 2], "component": ["a", "a", "b"], "layer": [0, 0, None], "role": ["norm"] * 3}
        >>> found = Recorded.of(pa.table({**columns, "size": [4, 4, 1], "norm": [1.0, 2.0, 3.0]}))
        >>> found.steps.tolist(), found.components, found.column("norm").tolist()
        ([1, 2], ('a', 'b'), [[1.0, nan], [2.0, 3.0]])
    """

    steps: Whole
    components: tuple[str, ...]
    sizes: Whole
    layers: tuple[int | None, ...]
    roles: tuple[str | None, ...]
    table: pa.Table = field(repr=False)
    _rows: Whole = field(repr=False)
    _columns: Whole = field(repr=False)

    @classmethod
    def of(cls, table: pa.Table) -> Recorded:
        """Arrange a table.

        Args:
            table: with the columns ``step``, ``component``, ``layer``, ``role``, ``size``, in any order of rows.

        Returns:
            The components in the order in which they first appear.
        """
        steps, rows = np.unique(table["step"].to_numpy(), return_inverse=True)
        names = table["component"].cast(pa.string()).combine_chunks().dictionary_encode()
        codes = names.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        _, first = np.unique(codes, return_index=True)
        about = table.select(["layer", "role", "size"]).take(pa.array(first)).to_pydict()
        return cls(
            steps=steps.astype(np.int64),
            components=tuple(names.dictionary.to_pylist()),
            sizes=np.array([size or 0 for size in about["size"]], dtype=np.int64),
            layers=tuple(about["layer"]),
            roles=tuple(about["role"]),
            table=table,
            _rows=rows.astype(np.int64),
            _columns=codes,
        )

    def column(self, name: str, *, absent: float = np.nan) -> Floats:
        """Return a column of the table.

        Args:
            name: the column, of numbers.
            absent: what stands where a component was not recorded, or nothing is known.

        Returns:
            Its values, shape ``[S, C]``.
        """
        found = np.full((len(self.steps), len(self.components)), absent)
        values = self.table[name].cast(pa.float64()).fill_null(absent)
        found[self._rows, self._columns] = values.to_numpy()
        return found

    def layer_norms(self, name: str = "norm") -> Floats:
        """Return norms of whole layers: the root of the sum of the squares of their components.

        Args:
            name: a column of norms.

        Returns:
            Norms, shape ``[S, L]``, the layers of each stack apart; NaN where none of a layer was recorded.
        """
        places = [
            None if layer is None else (path.partition("layer.")[0], layer)
            for path, layer in zip(self.components, self.layers, strict=True)
        ]
        squares = self.column(name) ** 2
        each = [
            _summed(squares[:, [place == wanted for place in places]])
            for wanted in dict.fromkeys(place for place in places if place is not None)
        ]
        return np.sqrt(np.stack(each, axis=1)) if each else np.empty((len(self.steps), 0))

    def role_norms(self, role: str, name: str = "norm") -> Floats | None:
        """Return the norm of all components of one role together.

        Args:
            role: the role.
            name: a column of norms.

        Returns:
            Norms, shape ``[S]``; None where there is no such component.
        """
        chosen = [own == role for own in self.roles]
        return np.sqrt(_summed(self.column(name)[:, chosen] ** 2)) if any(chosen) else None


def _summed(squares: Floats) -> Floats:
    """Sum over components what is there of each step; NaN where nothing is, and where a norm was NaN alone."""
    there = ~np.isnan(squares)
    return np.where(there.any(axis=1), np.where(there, squares, 0.0).sum(axis=1), np.nan)
