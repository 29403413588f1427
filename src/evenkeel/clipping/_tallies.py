"""What is counted of every component's steps, on the device: all of them, or the last ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from torch import Tensor

from evenkeel.clipping.thresholds import Blank, Records

__all__ = ["Counts", "OfAllSteps", "OfLastSteps", "Tally"]

_OWNER = "ClipStatistics"


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What was counted, ``K`` components in all.

    Attributes:
        names: the components' names.
        steps: steps in which the component was there, shape ``[K]``.
        seen: those of them with a norm that is finite and not 0, shape ``[K]``.
        clipped: those of them in which it was clipped, shape ``[K]``.
        nonfinite: steps with a norm that is not finite, shape ``[K]``.
        mean: mean of the norms seen, shape ``[K]``, float64.
        largest: the largest of them, shape ``[K]``, float64.
    """

    names: tuple[str, ...]
    steps: Tensor
    seen: Tensor
    clipped: Tensor
    nonfinite: Tensor
    mean: Tensor
    largest: Tensor


class Tally(Protocol):
    """Counts steps."""

    def add(self, names: tuple[str, ...], norms: Tensor, clipped: Tensor) -> None:
        """Count one step of ``C`` components, without waiting for the device."""

    def read(self) -> Counts:
        """Return the counts, still on the device."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of another tally of the same kind."""


@final
class OfAllSteps:
    """Counts, and a running mean in float64, which stays exact over any number of steps."""

    def __init__(self) -> None:
        """Begin with nothing."""
        count = Blank(value=0, counts=True)
        self._records = Records(
            _OWNER,
            steps=count,
            seen=count,
            clipped=count,
            nonfinite=count,
            mean=Blank(value=0.0),
            largest=Blank(value=0.0),
        )

    def add(self, names: tuple[str, ...], norms: Tensor, clipped: Tensor) -> None:
        """Count one step.

        Args:
            names: the components' names, ``C`` of them.
            norms: their norms, shape ``[C]``.
            clipped: which were clipped, booleans of shape ``[C]``.
        """
        self._records.bind_names(names)
        norms = norms.double()
        rows = self._records.rows(norms)
        finite = norms.isfinite()
        seen = finite & (norms > 0)
        rows["steps"].add_(1)
        rows["seen"].add_(seen)
        rows["clipped"].add_(seen & clipped)
        rows["nonfinite"].add_(~finite)
        away = torch.where(seen, norms - rows["mean"], 0.0)
        rows["mean"].add_(away / rows["seen"].clamp(min=1))
        rows["largest"].copy_(torch.where(seen, rows["largest"].maximum(norms), rows["largest"]))

    def read(self) -> Counts:
        """Return the counts, of components present and past."""
        state = self._records.state_dict()
        return Counts(names=tuple(state.pop("names")), **state)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs."""
        return self._records.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of another one.

        Args:
            state: what :meth:`state_dict` returned.

        Raises:
            ThresholdError: if it is none.
        """
        self._records.load_state_dict(state)


@final
class OfLastSteps:
    """A ring of the norms of the last steps for each component; a norm that was clipped is stored as negative."""

    def __init__(self, window: int) -> None:
        """Keep the last ``window`` steps."""
        self._window = window
        self._records = Records(_OWNER, steps=Blank(value=0, counts=True), norms=Blank(value=0.0, width=window))

    def add(self, names: tuple[str, ...], norms: Tensor, clipped: Tensor) -> None:
        """Count one step.

        Args:
            names: the components' names, ``C`` of them.
            norms: their norms, shape ``[C]``.
            clipped: which were clipped, booleans of shape ``[C]``.
        """
        self._records.bind_names(names)
        rows = self._records.rows(norms)
        stored = torch.where(clipped, -norms, norms).masked_fill(~norms.isfinite(), float("nan"))
        place = (rows["steps"] % self._window).unsqueeze(1)
        rows["norms"].scatter_(1, place, stored.to(rows["norms"]).unsqueeze(1))
        rows["steps"].add_(1)

    def read(self) -> Counts:
        """Return the counts, of components present and past; each over its own last steps."""
        state = self._records.state_dict()
        steps, stored = state["steps"].clamp(max=self._window), state["norms"].double()
        norms = stored.abs().nan_to_num(0.0)  # 0 is no norm, nor are places that no step has reached
        seen = (norms > 0).sum(1)
        return Counts(
            names=tuple(state["names"]),
            steps=steps,
            seen=seen,
            clipped=(stored < 0).sum(1),
            nonfinite=stored.isnan().sum(1),
            mean=norms.sum(1) / seen.clamp(min=1),
            largest=norms.amax(1),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs."""
        return self._records.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of another one.

        Args:
            state: what :meth:`state_dict` returned.

        Raises:
            ThresholdError: if it is none, or of another window.
        """
        self._records.load_state_dict(state)
