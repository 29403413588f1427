"""What a framework's log is told of clipping: few numbers with stable names."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor

from evenkeel.clipping import ClipResult
from evenkeel.partition import Components

__all__ = ["RoleLog"]

_KEPT = 64  # results that wait to be counted together: counting each at once would cost a seventh of the clipping


@final
class RoleLog:
    """Norms and clip rates by role, from one log entry to the next.

    Nothing waits for the device until :meth:`take`.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self._waiting: list[ClipResult] = []
        self._counts: list[tuple[tuple[str, ...], Tensor]] = []  # names, C of them; steps seen and clipped  # [2, C]
        self._last: ClipResult | None = None
        self._parts: Components | None = None
        self._roles: dict[str, str | None] = {}

    def update(self, parts: Components, result: ClipResult) -> None:
        """Take one step into account.

        Args:
            parts: the components.
            result: what the clipping function returned for them.
        """
        if parts is not self._parts:
            self._count()
            self._parts = parts
            self._roles |= {part.name: part.role for part in parts}
        self._waiting.append(result)
        self._last = result
        if len(self._waiting) == _KEPT:
            self._count()

    def take(self) -> dict[str, float]:
        """Return what is to be logged, and begin anew; this waits for the device.

        Returns:
            ``grad_norm``, the norm of the whole gradient before clipping in the latest step, and ``grad_norm/<role>``,
            that of all components of a role; ``clip_rate`` and ``clip_rate/<role>``: the share of steps in which a
            component was clipped, mean over components. Steps in which a component has no gradient, or one that is not
            finite, do not count. Nothing where no step was made.
        """
        if self._last is None:
            return {}
        self._count()
        norms = self._by_role(self._last.to_dict().items())
        rates = self._by_role(self._rates().items())
        entries = {"grad_norm": self._last.total_norm.item()}
        # A merged component (by="layer") may have no one role; then the whole is all that has a stable name.
        entries |= {f"grad_norm/{role}": _joint(each) for role, each in sorted(norms.items()) if role}
        entries |= _mean("clip_rate", [rate for each in rates.values() for rate in each])
        for role, each in sorted(rates.items()):
            entries |= _mean(f"clip_rate/{role}", each) if role else {}
        self._counts, self._last = [], None
        return entries

    @torch.no_grad()
    def _count(self) -> None:
        """Count what waits, all of it of the same components."""
        if not self._waiting:
            return
        names = self._waiting[0].names
        norms = torch.stack([result.norms for result in self._waiting])  # [S, C], S steps
        clipped = torch.stack([result.coefficients for result in self._waiting]) < 1
        self._waiting = []
        seen = norms.isfinite() & (norms > 0)
        counts = torch.stack([seen.sum(0), (seen & clipped).sum(0)])
        if self._counts and self._counts[-1][0] is names:
            counts = counts + self._counts.pop()[1]
        self._counts.append((names, counts))

    def _rates(self) -> dict[str, float]:
        """Return the share of steps in which each component was clipped, where there is one."""
        totals: dict[str, tuple[int, int]] = {}
        for names, counts in self._counts:
            for name, seen, clipped in zip(names, *counts.tolist(), strict=True):
                before = totals.get(name, (0, 0))
                totals[name] = (before[0] + seen, before[1] + clipped)
        return {name: clipped / seen for name, (seen, clipped) in totals.items() if seen}

    def _by_role(self, values: Iterable[tuple[str, float]]) -> dict[str, list[float]]:
        found: dict[str, list[float]] = defaultdict(list)
        for name, value in values:
            found[self._roles[name] or ""].append(value)
        return found


def _joint(norms: list[float]) -> float:
    return math.nan if any(map(math.isnan, norms)) else math.hypot(*norms)


def _mean(name: str, values: list[float]) -> dict[str, float]:
    return {name: sum(values) / len(values)} if values else {}
