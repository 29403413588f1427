"""Another pass with the dropout of an earlier one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn

__all__ = ["Replay"]


@final
class Replay:
    """What torch's global generators stood at, on the CPU and on the CUDA devices of a model.

    Example:
        >>> replay = Replay(nn.Linear(1, 1))
        >>> replay.remember()
        >>> first, second = torch.rand(1), torch.rand(1)
        >>> with replay.again():
        ...     torch.rand(1) == first
        tensor([True])
        >>> torch.rand(1) == second
        tensor([False])
    """

    def __init__(self, model: nn.Module) -> None:
        """Remember generators for passes of ``model``."""
        self._model = model
        self._states: list[tuple[torch.device, Tensor]] = []

    def remember(self) -> None:
        """Remember where the generators stand now."""
        devices = {parameter.device for parameter in self._model.parameters() if parameter.device.type == "cuda"}
        cuda = [(device, torch.cuda.get_rng_state(device)) for device in devices]
        self._states = [(torch.device("cpu"), torch.get_rng_state()), *cuda]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Draw from where they stood; afterwards they stand where they do now.

        Yields:
            Nothing.
        """
        with torch.random.fork_rng([device for device, _ in self._states if device.type == "cuda"]):
            for device, state in self._states:
                if device.type == "cuda":
                    torch.cuda.set_rng_state(state, device)
                else:
                    torch.set_rng_state(state)
            yield
