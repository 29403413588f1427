"""Thresholds that are numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Real
from typing import final

from evenkeel.clipping.thresholds._check import refuse_mismatch
from evenkeel.clipping.thresholds._constants import Constants
from evenkeel.clipping.thresholds._threshold import Limits, Seen, Threshold
from evenkeel.errors import ThresholdError
from evenkeel.partition import Components

__all__ = ["Fixed"]


@final
@dataclass(frozen=True, eq=False)
class Fixed(Threshold):
    """One number for each component, the same in every step: what a plain ``max_norm`` becomes.

    The numbers are copied to the device in the first step; where they are all the same, not even then.

    Attributes:
        values: the norms allowed, ``C`` of them, in the order of the components; positive, infinity clips nothing.

    Raises:
        ThresholdError: if there are no values, or one is no positive number.

    Source: Yang & Ma 2022, arXiv 2210.10325, section 4.

    Example:
        >>> import torch
        >>> Fixed((0.5, 2.0)).limits(Seen(norms=torch.tensor([1.0, 1.0]))).coefficients
        tensor([0.5000, 1.0000])
    """

    values: tuple[float, ...]
    _constants: Constants = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.values, tuple) or not self.values:
            raise ThresholdError(
                f"Fixed.values must be a tuple of numbers, one for each component, but got {self.values!r}; to give "
                "all components the same one, pass the number itself as max_norm"
            )
        for value in self.values:
            if isinstance(value, bool) or not isinstance(value, Real) or not value > 0:  # refuses NaN too
                raise ThresholdError(
                    f"Fixed.values must be positive numbers, but holds {value!r}; to clip nothing, use float('inf')"
                )
        object.__setattr__(self, "_constants", Constants())  # torch.compile cannot trace a default_factory

    @property
    def separate(self) -> bool:
        """True: numbers need no norm."""
        return True

    def bind(self, parts: Components) -> None:
        """Refuse components that are not as many as the values.

        Args:
            parts: the components, ``C`` of them.

        Raises:
            ThresholdError: if there are more or fewer than values.
        """
        if len(parts) != len(self.values):
            raise ThresholdError(
                f"Fixed holds {len(self.values)} values, and there are {len(parts)} components; give each its own, or "
                "pass numbers by role or path, as max_norm={'query': 0.1, '*': 0.05}"
            )

    def limits(self, seen: Seen) -> Limits:
        """Return the numbers.

        Args:
            seen: the norms of this step, ``C`` components.

        Returns:
            The values as thresholds, and the components' own norms.

        Raises:
            ThresholdError: if there are more or fewer norms than values.
        """
        refuse_mismatch(seen.norms, len(self.values))
        return Limits(thresholds=self._constants.get(None, lambda: self.values, seen.norms), norms=seen.norms)
