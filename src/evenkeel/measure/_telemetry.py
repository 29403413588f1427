"""What every component does over a training: gradient, coefficient, weight, update, drift."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

import pyarrow as pa
import torch
from torch import Tensor

from evenkeel.clipping import ClipResult, WeightCopies, copy_weights, grad_norms, weight_distances, weight_norms
from evenkeel.errors import MeasureError
from evenkeel.measure._clipped import coefficients_of, norms_of
from evenkeel.measure._records import UNKNOWN, Record, rows_of
from evenkeel.measure._references import References
from evenkeel.measure._schema import of_today
from evenkeel.measure._sink import Sink
from evenkeel.partition import Components

__all__ = ["Telemetry"]

_BLOCK = 64  # records that stay on the device at a time
_SMALL = 1 << 24  # entries; so few keep their place between records, since taking it anew can cost more than copying


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """What was seen before a step."""

    step: int
    phase: int
    parts: Components
    norms: Tensor | None
    weights: Tensor
    copies: WeightCopies


@final
class Telemetry:
    """Records single steps of a training on the device; the host waits for it once in a block of 64 records.

    In every step :meth:`look` comes before weights are changed; in a step that is to be recorded also :meth:`before`,
    on complete and unscaled gradients before they are clipped, and :meth:`after` the optimizer's step. What is frozen
    has no rows. All ranks that share a component must record the same steps.

    It keeps one copy of the weights that are trained, as they were at the beginning; another one of those that were
    trained in earlier phases, where there are phases; and one more during a recorded step. Every recorded step reads
    the weights about six times and the gradients once.

    Attributes:
        every: record each ``every``-th step, the first one among them.

    Example:
        >>> from evenkeel.partition import components
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> parts, optimizer = components(model), torch.optim.SGD(model.parameters(), lr=0.5)
        >>> telemetry = Telemetry(every=1)
        >>> telemetry.look(parts)
        >>> model(torch.tensor([[3.0, 4.0]])).sum().backward()
        >>> telemetry.before(1)
        >>> optimizer.step()
        >>> telemetry.after()
        >>> row = telemetry.table().to_pylist()[0]
        >>> row["step"], row["component"], row["norm"], round(row["update_norm"], 4), row["coefficient"]
        (1, 'weight', 5.0, 2.5, None)
    """

    def __init__(
        self, *, every: int = 10, path: Path | str | None = None, references: References | None = None
    ) -> None:
        """Begin with nothing recorded.

        Args:
            every: record each so many steps.
            path: a Parquet file to write blocks to; None keeps them in memory.
            references: copies to measure drift from, made earlier; None begins with the weights of the first look.

        Raises:
            MeasureError: if ``every`` is no whole number, or not positive.
        """
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise MeasureError(f"every must be a whole number, at least 1, but got {every!r}; 1 records each step")
        self.every = every
        self._sink = Sink(None if path is None else Path(path))
        self._references: References | None = references or References()
        self._parts: Components | None = None
        self._phase = 0
        self._begun: _Begun | None = None
        self._records: list[Record] = []
        self._spare: WeightCopies = {}

    @property
    def pending(self) -> bool:
        """Whether :meth:`before` was called and :meth:`after` is to come."""
        return self._begun is not None

    @property
    def references(self) -> References | None:
        """What drift is measured from; None where nobody knows it."""
        return self._references

    def forget_references(self) -> None:
        """Leave drift unknown: this is the rest of a training whose beginning was not seen."""
        self._references = None

    def continue_from(self, earlier: pa.Table) -> None:
        """Put what an interrupted training recorded before its own rows.

        Args:
            earlier: its table.
        """
        self._sink.add(of_today(earlier))

    def wants(self, done: int) -> bool:
        """Say whether a step is one of those that are always recorded.

        Args:
            done: steps done before it.

        Returns:
            Whether it is the first, or one of each ``every``.
        """
        return done % self.every == 0

    def look(self, parts: Components, phase: int = 0) -> None:
        """Take notice of what is trained, before every step; nearly always nothing happens.

        Args:
            parts: the components that are trained now.
            phase: the phase of training, counted from 0.
        """
        self._parts, self._phase = parts, phase
        if self._references is not None:
            self._references.look(parts, phase)

    def before(self, step: int, *, graded: bool = True) -> None:
        """See gradients and weights before a step of the components of the latest look.

        Args:
            step: number of the step, the first is 1.
            graded: whether gradients are there; where they are used up in backward, :meth:`after` tells their norms.

        Raises:
            MeasureError: if :meth:`look` was not called.
            GradientError: if no component has a gradient.
        """
        parts = self._parts
        if parts is None:
            raise MeasureError("look() was not called, which tells what is trained; call it before every step")
        self._begun = _Begun(
            step=step,
            phase=self._phase,
            parts=parts,
            norms=grad_norms(parts) if graded else None,
            weights=weight_norms(parts),
            copies=copy_weights(parts, into=self._spare),
        )

    @torch.no_grad()
    def after(
        self,
        result: ClipResult | None = None,
        clipped: Components | None = None,
        *,
        limited: tuple[ClipResult, Components] | None = None,
    ) -> None:
        """See what the step did.

        Args:
            result: what was clipped in this step; None where nobody tells.
            clipped: the components that it was clipped in; None for those that are recorded.
            limited: how the change of the weights was limited, and in which components, see
                :func:`evenkeel.optim.latest_update`; None where nobody limits it.

        Raises:
            MeasureError: if :meth:`before` was not called.
        """
        begun, self._begun = self._begun, None
        if begun is None:
            raise MeasureError("before() was not called, which sees the weights before the step; call both, or neither")
        parts, weights = begun.parts, begun.weights
        unknown = torch.full_like(weights, UNKNOWN)
        norms, coefficients = begun.norms, None
        if result is not None:
            coefficients = coefficients_of(parts, result, clipped or parts)
            norms = norms_of(parts, result) if norms is None else norms
        rows = [
            unknown if norms is None else norms,
            unknown if coefficients is None else coefficients,
            unknown if limited is None else coefficients_of(parts, *limited),
            weights,
            weight_distances(parts, begun.copies),
            weight_norms(parts),
            *([unknown] * 4 if self._references is None else self._references.rows(parts)),
        ]
        values = torch.stack([row.to(weights) for row in rows])
        self._spare = begun.copies if parts.size <= _SMALL else {}
        self._records.append(Record(step=begun.step, phase=begun.phase, parts=parts, values=values))
        if len(self._records) >= _BLOCK:
            self._flush()

    def table(self) -> pa.Table:
        """Return everything recorded, one row for each step and component, in order; a file is closed.

        Returns:
            The columns of ``docs/measures.md``.
        """
        self._flush()
        return self._sink.table()

    def close(self) -> None:
        """Write what is left and close the file, if there is one."""
        self._flush()
        self._sink.close()

    def _flush(self) -> None:
        if self._records:
            records, self._records = self._records, []
            self._sink.add(rows_of(records))
