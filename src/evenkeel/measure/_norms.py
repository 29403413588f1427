"""The gradient norm of every component over training."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa
from torch import Tensor

from evenkeel.clipping import grad_norms
from evenkeel.errors import MeasureError
from evenkeel.partition import Components

__all__ = ["GradientNorms"]

SCHEMA = pa.schema(
    [
        pa.field("step", pa.int32(), nullable=False),
        pa.field("component", pa.string(), nullable=False),
        pa.field("layer", pa.int32()),
        pa.field("role", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("norm", pa.float32(), nullable=False),
    ]
)


@dataclass
class GradientNorms:
    """Collects norms on the device and hands them over as one table; a record costs no host synchronisation.

    Attributes:
        every: record each ``every``-th step, the first one among them.

    Raises:
        MeasureError: if ``every`` is not positive.
    """

    every: int = 10
    _seen: list[tuple[int, Components, Tensor]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise MeasureError(f"every must be at least 1, but got {self.every}; 1 records each step")

    def record(self, step: int, parts: Components) -> None:
        """Record the norms of this step, before clipping.

        Args:
            step: optimizer steps done before this one.
            parts: the components that have gradients now, ``C`` of them.
        """
        if step % self.every == 0:
            self._seen.append((step, parts, grad_norms(parts)))

    def table(self) -> pa.Table:
        """Return everything recorded, one row per step and component, in order.

        Returns:
            Columns ``step``, ``component`` (its path), ``layer``, ``role``, ``kind``, ``norm`` (before clipping).
        """
        rows = [
            {
                "step": step,
                "component": part.path,
                "layer": part.layer,
                "role": part.role,
                "kind": part.kind,
                "norm": norm,
            }
            for step, parts, norms in self._seen
            for part, norm in zip(parts, norms.tolist(), strict=True)
        ]
        return pa.Table.from_pylist(rows, schema=SCHEMA)
