"""The phases of a training, counted in optimizer steps."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

from evenkeel.errors import MethodError
from evenkeel.methods._contract import Phase

__all__ = ["PhaseSchedule"]


class PhaseSchedule:
    """When each phase of a training begins, in optimizer steps.

    Attributes:
        phases: the phases in order.

    Example:
        >>> whole = PhaseSchedule([Phase(name="all", trainable=lambda part: True)] * 2, epochs=3)
        >>> whole.total_epochs
        6
        >>> whole.set_steps(10)
        >>> whole.phase_steps(), whole.at(7)
        ([5, 5], (1, 5))
    """

    def __init__(self, phases: Sequence[Phase], *, epochs: float) -> None:
        """Line up the phases.

        Args:
            phases: at least one.
            epochs: the length of those that name none of their own.
        """
        self.phases = tuple(phases)
        self._lengths = [phase.epochs if phase.epochs is not None else epochs for phase in phases]
        self._starts = [0]
        self._steps = 0

    def __len__(self) -> int:
        return len(self.phases)

    @property
    def total_epochs(self) -> float:
        """Length of the whole training, in epochs."""
        return sum(self._lengths)

    def set_steps(self, steps: int) -> None:
        """Share the steps of the whole training among the phases, in proportion to their epochs.

        Args:
            steps: optimizer steps of the whole training.

        Raises:
            MethodError: if a phase would get none.
        """
        ends = [round(steps * done / self.total_epochs) for done in itertools.accumulate(self._lengths)]
        if len(set(ends)) < len(ends) or ends[0] == 0:
            raise MethodError(f"{steps} steps are too few for {len(self)} phases; train longer, or on more examples")
        self._starts, self._steps = [0, *ends[:-1]], steps

    def phase_steps(self) -> list[int]:
        """Return the length of each phase, in steps."""
        return [end - start for start, end in itertools.pairwise([*self._starts, self._steps])]

    def schedules(self) -> list[tuple[int, int]]:
        """Return first step and length of each learning-rate schedule: phases that do not restart go on with one."""
        starts = [start for start, phase in zip(self._starts, self.phases, strict=True) if phase.restart or not start]
        return [(start, end - start) for start, end in itertools.pairwise([*starts, self._steps])]

    def at(self, step: int) -> tuple[int, int]:
        """Return the phase that optimizer step ``step`` belongs to, and that phase's first step."""
        phase = bisect.bisect_right(self._starts, step) - 1
        return phase, self._starts[phase]

    def begins(self, step: int) -> bool:
        """Say whether a phase begins with optimizer step ``step``."""
        return step in self._starts
