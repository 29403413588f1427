"""What clipping did over many steps, by component."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral
from typing import TYPE_CHECKING, Any, final

import torch

from evenkeel.clipping._result import ClipResult
from evenkeel.clipping._tallies import OfAllSteps, OfLastSteps, Tally
from evenkeel.errors import MeasureError, ThresholdError

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["ClipStatistics"]


@final
class ClipStatistics:
    """How often each component was clipped, and what norms it had.

    Everything stays on the device until it is read; only reading waits. A step in which a component has norm 0 (no
    gradient) counts among its steps and tells nothing else; so does one whose norm is not finite, which is counted
    apart. Shares, means and maxima are over the other steps, and NaN where there are none. Components go by name: one
    that is frozen keeps what was counted of it, and goes on when it comes back.

    Attributes:
        window: how many of a component's last steps count; None for all since the last :meth:`reset`.

    Example:
        >>> from evenkeel.clipping import clip_grad_norm_
        >>> model = torch.nn.Linear(1, 1)
        >>> statistics = ClipStatistics()
        >>> for weight, bias in ((2.0, 0.1), (4.0, 3.0)):
        ...     model.weight.grad, model.bias.grad = torch.tensor([[weight]]), torch.tensor([bias])
        ...     statistics.update(clip_grad_norm_(model, max_norm=1.0))
        >>> statistics.clipped
        {'weight': 1.0, 'bias': 0.5}
        >>> statistics.to_dict()["weight"]
        {'steps': 2, 'clipped': 1.0, 'mean_norm': 3.0, 'max_norm': 4.0, 'nonfinite': 0}
    """

    def __init__(self, window: int | None = None) -> None:
        """Begin with nothing counted."""
        if window is not None and (isinstance(window, bool) or not isinstance(window, Integral) or window < 1):
            raise MeasureError(
                f"ClipStatistics.window must be a whole number of steps, at least 1, but got {window!r}; None counts "
                "all steps since the last reset()"
            )
        self.window = None if window is None else int(window)
        self._tally = self._fresh()

    def _fresh(self) -> Tally:
        return OfAllSteps() if self.window is None else OfLastSteps(self.window)

    def __repr__(self) -> str:
        return f"ClipStatistics(window={self.window})"

    @torch.no_grad()
    def update(self, result: ClipResult) -> None:
        """Count one step; nothing waits for the device.

        Args:
            result: what the clipping function returned.
        """
        self._tally.add(result.names, result.norms.detach(), result.coefficients.detach() < 1)

    def reset(self) -> None:
        """Forget all steps and components."""
        self._tally = self._fresh()

    @property
    def steps(self) -> dict[str, int]:
        """Number of steps that count, by component; reading waits for the device."""
        return {name: int(values["steps"]) for name, values in self.to_dict().items()}

    @property
    def clipped(self) -> dict[str, float]:
        """Share of steps in which it was clipped, by component; reading waits for the device."""
        return {name: values["clipped"] for name, values in self.to_dict().items()}

    @property
    def mean_norm(self) -> dict[str, float]:
        """Mean norm before clipping, by component; reading waits for the device."""
        return {name: values["mean_norm"] for name, values in self.to_dict().items()}

    @property
    def max_norm(self) -> dict[str, float]:
        """Largest norm before clipping, by component; reading waits for the device."""
        return {name: values["max_norm"] for name, values in self.to_dict().items()}

    @property
    def nonfinite(self) -> dict[str, int]:
        """Number of steps in which the norm was NaN or infinite, by component; reading waits for the device."""
        return {name: int(values["nonfinite"]) for name, values in self.to_dict().items()}

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return all that is known of every component, by its name; this waits for the device."""
        counts = self._tally.read()
        tables = (counts.steps, counts.seen, counts.clipped, counts.nonfinite, counts.mean, counts.largest)
        rows = zip(counts.names, *(table.tolist() for table in tables), strict=True)
        return {
            name: {
                "steps": steps,
                "clipped": clipped / seen if seen else math.nan,
                "mean_norm": mean if seen else math.nan,
                "max_norm": largest if seen else math.nan,
                "nonfinite": nonfinite,
            }
            for name, steps, seen, clipped, nonfinite, mean, largest in rows
        }

    def __rich__(self) -> Table:
        from rich.markup import escape
        from rich.table import Table

        over = "all steps" if self.window is None else f"the last {self.window} steps"
        table = Table(title=f"Clipping over {over}")
        table.add_column("component", no_wrap=True)
        for name in ("clipped", "mean norm", "max norm", "steps", "not finite"):
            table.add_column(name, justify="right")
        rows = sorted(self.to_dict().items(), key=lambda row: -row[1]["clipped"] if row[1]["clipped"] >= 0 else 1.0)
        for name, values in rows:
            numbers = (f"{values['clipped']:.1%}", f"{values['mean_norm']:.3g}", f"{values['max_norm']:.3g}")
            shown = ("-",) * 3 if math.isnan(values["clipped"]) else numbers
            table.add_row(escape(name), *shown, f"{values['steps']:,}", f"{values['nonfinite']:,}")
        return table

    def state_dict(self) -> dict[str, Any]:
        """Return all counts, for a resumed training."""
        return {"window": self.window, **self._tally.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting where another one with the same window was.

        Args:
            state: what :meth:`state_dict` returned.

        Raises:
            MeasureError: if it is no such state, or of another window.
        """
        if not isinstance(state, Mapping) or state.get("window", "none") != self.window:
            given = f"window={state.get('window')!r}" if isinstance(state, Mapping) else f"a {type(state).__name__}"
            raise MeasureError(
                f"ClipStatistics(window={self.window}) cannot load a state of {given}; make it with the window that "
                "the state was saved under"
            )
        fresh = self._fresh()
        try:
            fresh.load_state_dict({key: value for key, value in state.items() if key != "window"})
        except ThresholdError as error:
            raise MeasureError(str(error)) from error
        self._tally = fresh
