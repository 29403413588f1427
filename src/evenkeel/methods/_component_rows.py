"""A few numbers that a method keeps for each component."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import final

import torch
from torch import Tensor

from evenkeel.partition import Component

__all__ = ["ComponentRows"]


@final
class ComponentRows:
    """Numbers of each component by its name, 0 where it is new; components may come and go."""

    def __init__(self, width: int) -> None:
        """Keep ``width`` numbers for each component."""
        self._width = width
        self._rows: dict[str, Tensor] = {}

    def of(self, parts: Iterable[Component], like: Tensor) -> Tensor:
        """Return the numbers of some components.

        Args:
            parts: the components, ``C`` of them, at least one.
            like: a tensor of the device and dtype that is wanted.

        Returns:
            Shape ``[C, width]``.
        """
        new = like.new_zeros(self._width)
        return torch.stack([self._rows.get(part.name, new).to(like) for part in parts])

    def keep(self, parts: Iterable[Component], rows: Tensor) -> None:
        """Keep the numbers of some components, and those of the others as they are.

        Args:
            parts: the components, ``C`` of them.
            rows: shape ``[C, width]``.
        """
        self._rows.update(zip((part.name for part in parts), rows.unbind(), strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the numbers, by the names of components."""
        return dict(self._rows)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self._rows = dict(state)
