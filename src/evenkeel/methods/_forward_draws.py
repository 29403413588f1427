"""A method's own random numbers in forward passes."""

from __future__ import annotations

from typing import final

import torch

from evenkeel.methods._draws import Moment

__all__ = ["ForwardDraws"]


@final
class ForwardDraws:
    """Generators for what hooks draw in the forward passes of a micro-batch, one for each device.

    They begin anew with each micro-batch, and go on from one pass of it to the next.
    """

    def __init__(self, name: str) -> None:
        """Draw for the method ``name``."""
        self._name = name
        self._moment: Moment | None = None
        self._generators: dict[torch.device, torch.Generator] = {}

    def begin(self, moment: Moment) -> None:
        """Begin anew for the micro-batch at ``moment``."""
        self._moment, self._generators = moment, {}

    def on(self, device: torch.device) -> torch.Generator:
        """Return the generator for tensors on ``device``."""
        if device not in self._generators:
            moment = self._moment or Moment(step=0)  # a pass before the first micro-batch
            self._generators[device] = moment.generator(self._name, device)
        return self._generators[device]
