"""Numbers that are copied to the device once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import final

import torch
from torch import Tensor

__all__ = ["Constants"]


@final
class Constants:
    """Remembers the last tensor that was made of numbers of the host, so that no step but the first copies them."""

    def __init__(self) -> None:
        """Begin with nothing remembered."""
        self._key: Hashable = None
        self._tensor: Tensor | None = None

    def get(self, key: Hashable, numbers: Callable[[], tuple[float, ...]], like: Tensor) -> Tensor:
        """Return numbers as a tensor.

        Args:
            key: what the numbers depend on.
            numbers: computes them; called where the key, the device or the dtype is another than before.
            like: gives the device and the dtype.

        Returns:
            A tensor of shape ``[C]`` that nobody must change.
        """
        wanted = (key, like.device, like.dtype)
        if self._tensor is None or self._key != wanted:
            self._tensor = _made(numbers(), like)
            self._key = wanted
        return self._tensor


def _made(numbers: tuple[float, ...], like: Tensor) -> Tensor:
    if len(set(numbers)) == 1:  # one number is written on the device, without a copy from the host
        return torch.full((len(numbers),), numbers[0], dtype=like.dtype, device=like.device)
    return torch.tensor(numbers, dtype=like.dtype, device="cpu").to(like.device, non_blocking=True)
