"""Random numbers that belong to a method alone, and to one moment of a training."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import final

import torch

__all__ = ["Moment", "private_generator"]


def private_generator(*what: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Make a generator that depends on ``what`` alone, so that nobody else's draws move with it, nor it with theirs.

    Args:
        *what: what the draws are for: seed, name, step and the like.
        device: where its tensors will lie.

    Returns:
        A generator; the same for the same ``what``.

    Example:
        >>> one, other = (private_generator(7, "mixout") for _ in range(2))
        >>> torch.rand(1, generator=one) == torch.rand(1, generator=other)
        tensor([True])
    """
    digest = hashlib.sha256("\0".join(map(repr, what)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


@final
@dataclass(frozen=True, kw_only=True)
class Moment:
    """Where a training is. Draws that come from it need no state: a resumed training finds the same moment again.

    Attributes:
        step: optimizer steps before this one.
        micro: micro-batches of this step before this one.
        seed: the training's seed.
        rank: this process, where several train together.
    """

    step: int
    micro: int = 0
    seed: int = 0
    rank: int = 0

    def generator(self, name: str, device: torch.device | str = "cpu", *, alike: bool = False) -> torch.Generator:
        """Make a generator for this moment.

        Args:
            name: the method that draws.
            device: where its tensors will lie.
            alike: the same on every rank, as what changes gradients or weights must be; else each rank has its own.

        Returns:
            A new generator.
        """
        return private_generator(self.seed, name, self.step, self.micro, 0 if alike else self.rank, device=device)
