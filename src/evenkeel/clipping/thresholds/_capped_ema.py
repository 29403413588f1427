"""AGGC: a running average of clipped norms as the threshold, approached by a bounded factor a step."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from evenkeel.clipping.thresholds._check import is_count, is_number, require
from evenkeel.clipping.thresholds._clock import Clock
from evenkeel.clipping.thresholds._records import Blank, Records
from evenkeel.clipping.thresholds._running import Running
from evenkeel.clipping.thresholds._threshold import Limits, Seen
from evenkeel.errors import ThresholdError

__all__ = ["CappedEma"]


@final
@dataclass(frozen=True, eq=False)
class CappedEma(Running):
    r"""Clip to a multiple of a running average, but by no more than a given factor in one step.

    .. math::

        \delta_c = \max(\alpha_t S_c, \; \kappa \lVert g_c \rVert), \qquad
        S_c \leftarrow \beta S_c + (1 - \beta) \min(\lVert g_c \rVert, \delta_c)

    where :math:`S_c` begins at 0 and nothing is clipped as long as it is 0. With ``total_steps``, :math:`\alpha_t` goes
    evenly from ``ratio`` to ``late_ratio`` between the shares ``change`` of the training; else it stays ``ratio``.

    As published, that is per kind of module, it is ``Grouped(CappedEma(), by="role")``. The published rule can also
    raise small gradients to a lower bound; its published runs have that off, and clipping cannot do it. Know what the
    published values mean: with a ratio below 1 a component whose norm is steady is multiplied by ``cap`` in every step,
    and no spike is weakened by more than ``cap`` either.

    A norm of 0, or one that is not finite, leaves the average as it is; an infinite one is clipped to
    :math:`\alpha_t S_c`.

    Attributes:
        ratio: :math:`\alpha` in the beginning; positive and finite.
        late_ratio: :math:`\alpha` in the end; positive and finite.
        beta: :math:`\beta`, the weight of the past; from 0 up to, but not including, 1.
        cap: :math:`\kappa`, the least coefficient; from 0, for no cap, to 1, for no clipping.
        total_steps: how many steps the training has; None keeps ``ratio``.
        change: between which shares of the training the ratio changes, from 0 to 1.

    Raises:
        ThresholdError: if a value is not as described.

    Source: Li et al. 2026, arXiv 2601.11864 (AGGC), with the values and the cap of its published code for language
        models.

    Example:
        >>> from evenkeel.partition import components
        >>> threshold = CappedEma(beta=0.0)
        >>> threshold.bind(components(torch.nn.Linear(1, 1, bias=False)))
        >>> [round(threshold.limits(Seen(norms=torch.tensor([norm]))).thresholds.item(), 2) for norm in (1.0, 1.0, 0.6)]
        [inf, 0.9, 0.54]
    """

    ratio: float = 0.6
    _: KW_ONLY
    late_ratio: float = 0.7
    beta: float = 0.95
    cap: float = 0.9
    total_steps: int | None = None
    change: tuple[float, float] = (0.4, 0.7)
    _records: Records = field(
        default_factory=lambda: Records("CappedEma", average=Blank(value=0)), init=False, repr=False
    )
    _clock: Clock = field(default_factory=lambda: Clock("CappedEma"), init=False, repr=False)

    def __post_init__(self) -> None:
        for name, value in (("ratio", self.ratio), ("late_ratio", self.late_ratio)):
            require(
                is_number(value) and value > 0,
                f"CappedEma.{name}",
                value,
                "a positive finite number",
                "0.6 and later 0.7 are the published ones",
            )
        require(
            is_number(self.beta) and 0 <= self.beta < 1,
            "CappedEma.beta",
            self.beta,
            "from 0 up to below 1",
            "0.95 is the published one",
        )
        require(is_number(self.cap) and 0 <= self.cap <= 1, "CappedEma.cap", self.cap, "from 0 to 1", "0 is for no cap")
        require(
            self.total_steps is None or is_count(self.total_steps, least=1),
            "CappedEma.total_steps",
            self.total_steps,
            "a whole number from 1 on, or None",
            "None keeps the first ratio",
        )
        good = isinstance(self.change, tuple) and len(self.change) == 2 and all(map(is_number, self.change))
        require(
            good and 0 <= self.change[0] < self.change[1] <= 1,
            "CappedEma.change",
            self.change,
            "two shares of the training, the first below the second",
            "(0.4, 0.7) is the published pair",
        )

    @property
    def separate(self) -> bool:
        """True: an average is one component's."""
        return True

    def limits(self, seen: Seen) -> Limits:
        """Return the thresholds of this step, and take its clipped norms into the averages.

        Args:
            seen: the norms of this step, ``C`` components.

        Returns:
            Thresholds, and the components' own norms.

        Raises:
            ThresholdError: if nobody told which components these are.
        """
        average = self._records.rows(seen.norms)["average"]
        norms, usable = seen.norms.to(average.dtype), seen.usable
        upper = self._ratio(norms) * average
        capped = torch.where(usable, torch.maximum(upper, self.cap * norms), upper)
        thresholds = torch.where(average > 0, capped, torch.inf)
        clipped = torch.minimum(norms, thresholds)
        average.copy_(torch.where(usable, self.beta * average + (1 - self.beta) * clipped, average))
        return Limits(thresholds=thresholds.to(seen.norms.dtype), norms=seen.norms)

    def _ratio(self, like: Tensor) -> Tensor | float:
        """Return the ratio of this step, and count the step."""
        if self.total_steps is None:
            return self.ratio
        begin, end = self.change
        done = self._clock.tick(like) / self.total_steps
        return self.ratio + (self.late_ratio - self.ratio) * ((done - begin) / (end - begin)).clamp(0.0, 1.0)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages of all components, by name, and how many steps there were."""
        return {**self._records.state_dict(), **self._clock.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another ``CappedEma`` was.

        Args:
            state: what :meth:`state_dict` returned.

        Raises:
            ThresholdError: if it is no state of a ``CappedEma``.
        """
        if not isinstance(state, dict) or "calls" not in state:
            raise ThresholdError(
                "CappedEma cannot load a state without 'calls'; pass what state_dict() of the same class returned"
            )
        rest = {key: value for key, value in state.items() if key != "calls"}
        self._records.load_state_dict(rest)
        self._clock.load_state_dict({"calls": state["calls"]})
