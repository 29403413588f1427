"""AGC: thresholds in proportion to the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar, Literal, final

from torch import Tensor

from evenkeel.clipping.thresholds._check import is_number, refuse_mismatch, require
from evenkeel.clipping.thresholds._constants import Constants
from evenkeel.clipping.thresholds._threshold import Limits, Seen, Threshold
from evenkeel.errors import ThresholdError
from evenkeel.partition import Component, Components, matches

__all__ = ["WeightRelative"]


@final
class _Ratios:
    """The ratio of every component bound, where they differ."""

    def __init__(self) -> None:
        self._parts: Components | None = None
        self._numbers: tuple[float, ...] | None = None
        self._constants = Constants()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_parts": None}

    def bind(self, parts: Components, ratio_of: Callable[[Component], float]) -> None:
        if parts is not self._parts:
            self._parts, self._numbers = parts, tuple(ratio_of(part) for part in parts)

    def like(self, norms: Tensor) -> Tensor:
        numbers = self._numbers
        refuse_mismatch(norms, None if numbers is None else len(numbers))
        assert numbers is not None  # noqa: S101  refused above
        return self._constants.get(numbers, lambda: numbers, norms)


@final
@dataclass(frozen=True, eq=False)
class WeightRelative(Threshold):
    r"""Allow a gradient a share of its weights' norm.

    .. math::

        \delta_u = \lambda \max(\lVert w_u \rVert, \epsilon)

    for every unit :math:`u`. In the paper a unit is a row of a matrix, what one output is computed from; that is
    ``per="row"``. With ``per="component"``, which is ours, the unit is the component.

    The floor :math:`\epsilon` is one unit's, as in the paper, and is what lets weights move that begin at zero: biases,
    a new head, LoRA's second matrix. So a component of :math:`R` rows at zero may have a gradient of
    :math:`\lambda\epsilon\sqrt{R}` by row (2-norm), and of :math:`\lambda\epsilon` as one component, which is
    :math:`\sqrt{R}` times less: raise the floor where that is too little.

    The paper leaves the last linear layer alone, which is ``unclipped=("head",)``.

    Attributes:
        ratio: :math:`\lambda`, what share of its weights' norm a gradient's norm may be; positive and finite.
        floor: :math:`\epsilon`, the least norm that weights count with, in units of the weights' norm; positive and
            finite.
        per: the unit: ``"component"``, or ``"row"`` (a parameter of fewer than two dimensions is one unit).
        unclipped: components that are left alone, by roles or patterns on paths; none may be there.

    Raises:
        ThresholdError: if a value is not as described.

    Source: Brock et al. 2021, arXiv 2102.06171, section 4.1.

    Example:
        >>> import torch
        >>> seen = Seen(norms=torch.ones(2), weights=torch.tensor([5.0, 0.0]))
        >>> WeightRelative(0.1).limits(seen).thresholds
        tensor([5.0000e-01, 1.0000e-04])
    """

    needs_weights: ClassVar[bool] = True

    ratio: float = 0.01
    _: KW_ONLY
    floor: float = 1e-3
    per: Literal["component", "row"] = "component"
    unclipped: tuple[str, ...] = ()
    _ratios: _Ratios = field(default_factory=_Ratios, init=False, repr=False)

    def __post_init__(self) -> None:
        for name, value, usual in (("ratio", self.ratio, 0.01), ("floor", self.floor, 1e-3)):
            require(
                is_number(value) and value > 0,
                f"WeightRelative.{name}",
                value,
                "a positive finite number",
                f"the published one is {usual}",
            )
        require(
            self.per in ("component", "row"),
            "WeightRelative.per",
            self.per,
            "'component' or 'row'",
            "choose whose weights a gradient is compared with",
        )
        require(
            isinstance(self.unclipped, tuple) and all(isinstance(pattern, str) for pattern in self.unclipped),
            "WeightRelative.unclipped",
            self.unclipped,
            "a tuple of roles or patterns",
            "write ('head',) to leave the head alone",
        )

    @property
    def separate(self) -> bool:
        """True: a component is compared with its own weights."""
        return True

    def ratio_of(self, part: Component) -> float:
        """Return the ratio that holds for a component; infinity where it is left alone."""
        return math.inf if any(matches(part, pattern) for pattern in self.unclipped) else self.ratio

    def bind(self, parts: Components) -> None:
        """Learn which components are left alone.

        Args:
            parts: the components, ``C`` of them.
        """
        if self.unclipped:
            self._ratios.bind(parts, self.ratio_of)

    def limits(self, seen: Seen) -> Limits:
        """Return the share of the weights' norms.

        Args:
            seen: the norms of this step, ``C`` components, those of the weights among them.

        Returns:
            The thresholds, and the components' own norms.

        Raises:
            ThresholdError: with ``per="row"``, which is no threshold for a component; or without weights' norms.
        """
        if self.per == "row":
            raise ThresholdError(
                "WeightRelative(per='row') clips the rows of every parameter and has no threshold for a component; "
                "clip_grad_norm_ does it by itself, so pass the object there, or use per='component'"
            )
        if seen.weights is None:
            raise ThresholdError(
                "WeightRelative was not told the norms of the weights; pass Seen(weights=...), as clip_grad_norm_ does "
                "for thresholds that say needs_weights"
            )
        weights = seen.weights.to(seen.norms.dtype)
        ratio = self._ratios.like(seen.norms) if self.unclipped else self.ratio
        return Limits(thresholds=ratio * weights.clamp(min=self.floor), norms=seen.norms)
