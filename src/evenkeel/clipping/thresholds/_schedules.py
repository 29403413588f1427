"""Thresholds that move from one number to another and stay there."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from evenkeel.clipping.thresholds._check import is_count, is_number, require
from evenkeel.clipping.thresholds._clock import Clock
from evenkeel.clipping.thresholds._threshold import Limits, Seen, Threshold

__all__ = ["Cosine", "Linear"]


class _Schedule(Threshold):
    """A threshold that knows nothing but the number of steps, kept by ``_clock``."""

    _clock: Clock

    @property
    def separate(self) -> bool:
        """True: all that counts is the number of steps."""
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return how many steps there were."""
        return self._clock.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another schedule was.

        Args:
            state: what :meth:`state_dict` returned.

        Raises:
            ThresholdError: if it is no state of a schedule.
        """
        self._clock.load_state_dict(state)


@final
@dataclass(frozen=True, eq=False)
class Linear(_Schedule):
    r"""Move the threshold of all components evenly, and then leave it.

    .. math::

        \delta_k = a + (b - a) \min(1, k / n)

    in call :math:`k = 0, 1, \dots`: the first step has the threshold ``start``, and from the one after ``steps`` steps
    on it is ``end``.

    Attributes:
        start: the first threshold, in units of the gradient's norm; positive and finite.
        end: the last threshold; positive and finite.
        steps: how many steps lie between them; 1 or more.

    Raises:
        ThresholdError: if a value is not as described.

    Source: a warm-up of the threshold, as learning rates have one; of no paper.

    Example:
        >>> threshold = Linear(1.0, 3.0, steps=2)
        >>> seen = Seen(norms=torch.ones(1))
        >>> [threshold.limits(seen).thresholds.item() for _ in range(4)]
        [1.0, 2.0, 3.0, 3.0]
    """

    start: float
    end: float
    steps: int
    _clock: Clock = field(default_factory=lambda: Clock("Linear"), init=False, repr=False)

    def __post_init__(self) -> None:
        _check("Linear", self.start, self.end, self.steps)

    def limits(self, seen: Seen) -> Limits:
        """Return the threshold of this step for every component, and count the step.

        Args:
            seen: the norms of this step, ``C`` components.

        Returns:
            The same threshold ``C`` times, and the components' own norms.
        """
        done = _done(self._clock, seen.norms, self.steps)
        return _everywhere(self.start + (self.end - self.start) * done, seen.norms)


@final
@dataclass(frozen=True, eq=False)
class Cosine(_Schedule):
    r"""Move the threshold of all components along half a cosine, slowly at both ends, and then leave it.

    .. math::

        \delta_k = b + (a - b) \tfrac{1}{2} \left(1 + \cos(\pi \min(1, k / n))\right)

    in call :math:`k = 0, 1, \dots`: the first step has the threshold ``start``, and from the one after ``steps`` steps
    on it is ``end``.

    Attributes:
        start: the first threshold, in units of the gradient's norm; positive and finite.
        end: the last threshold; positive and finite.
        steps: how many steps lie between them; 1 or more.

    Raises:
        ThresholdError: if a value is not as described.

    Source: the curve of Loshchilov & Hutter 2017, arXiv 1608.03983, equation 5, there for learning rates.

    Example:
        >>> threshold = Cosine(1.0, 3.0, steps=2)
        >>> seen = Seen(norms=torch.ones(1))
        >>> [round(threshold.limits(seen).thresholds.item(), 4) for _ in range(4)]
        [1.0, 2.0, 3.0, 3.0]
    """

    start: float
    end: float
    steps: int
    _clock: Clock = field(default_factory=lambda: Clock("Cosine"), init=False, repr=False)

    def __post_init__(self) -> None:
        _check("Cosine", self.start, self.end, self.steps)

    def limits(self, seen: Seen) -> Limits:
        """Return the threshold of this step for every component, and count the step.

        Args:
            seen: the norms of this step, ``C`` components.

        Returns:
            The same threshold ``C`` times, and the components' own norms.
        """
        done = _done(self._clock, seen.norms, self.steps)
        left = 0.5 * (1 + torch.cos(math.pi * done))
        return _everywhere(self.end + (self.start - self.end) * left, seen.norms)


def _check(name: str, start: object, end: object, steps: object) -> None:
    for what, value in (("start", start), ("end", end)):
        require(
            is_number(value) and value > 0,  # type: ignore[operator]  # a number, as is_number has found
            f"{name}.{what}",
            value,
            "a positive finite number",
            "to clip nothing for a while, begin with a large one such as 1e5",
        )
    require(is_count(steps, least=1), f"{name}.steps", steps, "a whole number from 1 on", "say how long the way takes")


def _done(clock: Clock, norms: Tensor, steps: int) -> Tensor:
    """Return the share of the way that lies behind, 0-dimensional, from 0 to 1."""
    return (clock.tick(norms) / steps).clamp(max=1.0)


def _everywhere(threshold: Tensor, norms: Tensor) -> Limits:
    return Limits(thresholds=threshold * torch.ones_like(norms), norms=norms)
