"""AdamW whose steps are limited by the weights, one parameter after the other in float64: the slow twin."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["LimitedByHand"]


class LimitedByHand:
    """The formula, read off line by line; components are lists of names, as here no parameter is cut."""

    def __init__(
        self,
        model: nn.Module,
        *,
        share: Callable[[str], float],
        members: Sequence[Sequence[str]],
        rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        decay: Callable[[str], float] = lambda name: 0.0,
        floor: float = 1e-3,
    ) -> None:
        self.named = dict(model.named_parameters())
        self.share, self.members, self.rate, self.betas, self.eps = share, members, rate, betas, eps
        self.decay, self.floor = decay, floor
        self.means: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        self.steps: dict[str, int] = {}
        self.coefficients: list[float] = []

    @torch.no_grad()
    def step(self, rate: Callable[[str], float] | None = None, measured: Callable[[str], float] | None = None) -> None:
        """Make a step at a rate by name, whose size is judged at another one."""
        rate = rate or (lambda name: self.rate)
        measured = measured or rate
        directions = {name: self._direction(name) for name, one in self.named.items() if one.grad is not None}
        self.coefficients = []
        for names in self.members:
            weights = [self.named[name] for name in names]
            size = sum(one.numel() for one in weights)
            moved = [measured(name) * directions[name] for name in names if name in directions]
            allowed = self.share(names[0]) * (norm(weights) + self.floor * math.sqrt(size))
            far = norm(moved)
            factor = min(1.0, allowed / far) if far else 1.0
            self.coefficients.append(factor)
            for name in names:
                if name in directions:
                    one, pace = self.named[name], factor * rate(name)
                    one.sub_(pace * self.decay(name) * one + pace * directions[name])

    def _direction(self, name: str) -> Tensor:
        grad = self.named[name].grad
        assert grad is not None
        (first, second), zero = self.betas, torch.zeros_like(grad)
        self.steps[name] = self.steps.get(name, 0) + 1
        mean = self.means[name] = first * self.means.get(name, zero) + (1 - first) * grad
        square = self.squares[name] = second * self.squares.get(name, zero) + (1 - second) * grad**2
        count = self.steps[name]
        return (mean / (1 - first**count)) / ((square / (1 - second**count)).sqrt() + self.eps)


def norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(math.fsum(float(one.double().square().sum()) for one in tensors))
