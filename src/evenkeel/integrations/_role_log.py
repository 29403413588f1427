"""What a framework's log is told of clipping: few numbers with stable names."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import final

from evenkeel.clipping import ClipResult, ClipStatistics
from evenkeel.partition import Components

__all__ = ["RoleLog"]


@final
class RoleLog:
    """Norms and clip rates by role, from one log entry to the next.

    Nothing waits for the device until :meth:`take`.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self._statistics = ClipStatistics()
        self._last: ClipResult | None = None
        self._parts: Components | None = None
        self._roles: dict[str, str | None] = {}

    def update(self, parts: Components, result: ClipResult) -> None:
        """Count one step.

        Args:
            parts: the components.
            result: what the clipping function returned for them.
        """
        if parts is not self._parts:
            self._parts = parts
            self._roles |= {part.name: part.role for part in parts}
        self._statistics.update(result)
        self._last = result

    def take(self) -> dict[str, float]:
        """Return what is to be logged, and begin anew; this waits for the device.

        Returns:
            ``grad_norm``, the norm of the whole gradient before clipping in the latest step, and ``grad_norm/<role>``,
            that of all components of a role; ``clip_rate`` and ``clip_rate/<role>``: the share of steps in which a
            component was clipped, mean over components that have a gradient. Nothing where no step was made.
        """
        if self._last is None:
            return {}
        norms: dict[str, list[float]] = defaultdict(list)
        for name, norm in self._last.to_dict().items():
            norms[self._roles[name] or ""].append(norm)
        rates: dict[str, list[float]] = defaultdict(list)
        for name, rate in self._statistics.clipped.items():
            if not math.isnan(rate):  # a component without a gradient cannot be clipped
                rates[self._roles[name] or ""].append(rate)
        entries = {"grad_norm": self._last.total_norm.item()}
        # A merged component (by="layer") may have no one role; then the whole is all that has a stable name.
        entries |= {f"grad_norm/{role}": _joint(each) for role, each in sorted(norms.items()) if role}
        entries |= _mean("clip_rate", [rate for each in rates.values() for rate in each])
        for role, each in sorted(rates.items()):
            entries |= _mean(f"clip_rate/{role}", each) if role else {}
        self._statistics.reset()
        self._last = None
        return entries


def _joint(norms: list[float]) -> float:
    return math.nan if any(map(math.isnan, norms)) else math.hypot(*norms)


def _mean(name: str, values: list[float]) -> dict[str, float]:
    return {name: sum(values) / len(values)} if values else {}
