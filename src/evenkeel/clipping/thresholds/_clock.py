"""How many steps there were, counted on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from evenkeel.clipping.thresholds._check import take_tensor
from evenkeel.errors import ThresholdError

__all__ = ["Clock"]


@final
class Clock:
    """A counter of calls that a CUDA graph can advance: a tensor that changes in place.

    Example:
        >>> clock = Clock("Linear")
        >>> [int(clock.tick(torch.zeros(1))) for _ in range(3)]
        [0, 1, 2]
    """

    def __init__(self, owner: str) -> None:
        """Begin at 0; messages name the ``owner``."""
        self._owner = owner
        self._calls = torch.zeros((), dtype=torch.int64, device="cpu")

    def tick(self, like: Tensor) -> Tensor:
        """Count one more call.

        Args:
            like: gives the device and the dtype.

        Returns:
            The number of calls before this one, 0-dimensional.
        """
        if self._calls.device != like.device:
            self._calls = self._calls.to(like.device, non_blocking=True)
        before = self._calls.to(like.dtype)
        self._calls.add_(1)
        return before

    def state_dict(self) -> dict[str, Any]:
        """Return the count."""
        return {"calls": self._calls.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved count.

        Args:
            state: what :meth:`state_dict` returned.

        Raises:
            ThresholdError: if it is no count.
        """
        if not isinstance(state, Mapping) or set(state) != {"calls"}:
            given = sorted(map(str, state)) if isinstance(state, Mapping) else f"a {type(state).__name__}"
            raise ThresholdError(
                f"{self._owner} cannot load a state of {given}, because its own holds ['calls']; pass what "
                "state_dict() of the same class returned"
            )
        self._calls.copy_(take_tensor(self._owner, state, "calls", (), dtype=torch.int64))
