"""Limiting a step of any optimizer after it was made: what was too much of the weights' change is taken back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from evenkeel.clipping import ClipResult, WeightCopies, copied_norms, copy_weights, weight_names, weight_norms
from evenkeel.optim._max_update import UpdateLimit, limit_coefficients
from evenkeel.partition import Components

__all__ = ["Limiter", "Rated", "begun_rate", "begun_rates", "rated_groups"]

_Rate = float | Tensor
Rated = tuple[dict[str, Any], _Rate, Sequence[Tensor]]  # a group, the rate it began with, and those of its parameters


@final
class Limiter:
    """Keeps the weights before a step, and what it may of their change after it. ``C`` components.

    Attributes:
        parts: the components.
        last: the norms of the latest changes, what was allowed, and the coefficients; None before the first.
    """

    def __init__(self, parts: Components, limit: UpdateLimit) -> None:
        """Limit steps of ``parts``."""
        self.parts, self._limit = parts, limit
        self.last: ClipResult | None = None
        self._begun: tuple[WeightCopies, Tensor] | None = None
        self._spare: WeightCopies = {}

    @torch.no_grad()
    def before(self) -> None:
        """Copy the weights, which a step is about to change."""
        self._begun = copy_weights(self.parts, into=self._spare), weight_norms(self.parts)

    @torch.no_grad()
    def after(self, rated: Iterable[Rated], *, keep: bool) -> ClipResult | None:
        """Take back what was too much; nothing waits for the device, and without :meth:`before` nothing happens.

        Args:
            rated: the optimizer's groups, with those of their parameters that belong to the components.
            keep: whether to keep the memory of the copies for the next step.

        Returns:
            The latest result; None where nothing was begun.
        """
        if self._begun is None:
            return None
        (copies, before), self._begun = self._begun, None
        self._spare = copies if keep else {}
        factors = self._factors(rated)
        weights: list[Tensor] = []
        changes: list[Tensor] = []
        owners: list[int] = []
        scales: list[_Rate] = []
        names = iter(weight_names(self.parts))
        for owner, part in enumerate(self.parts):
            for piece in part.pieces:
                views = piece.of(piece.tensor().detach())
                weights.extend(views)
                changes.extend(copies[next(names)])
                owners.extend([owner] * len(views))
                scales.extend([factors.get(id(piece.tensor()), 1.0)] * len(views))
        if changes:
            torch._foreach_neg_(changes)
            torch._foreach_add_(changes, weights)
            if factors:
                torch._foreach_mul_(changes, _placed(scales, changes))
        norms = copied_norms(self.parts, copies)
        allowed = self._limit.allowed(self.parts, before.to(norms))
        coefficients = limit_coefficients(norms, allowed)
        self._take_back(weights, changes, owners, scales, coefficients)
        names_of = tuple(part.name for part in self.parts)
        self.last = ClipResult(names=names_of, norms=norms, thresholds=allowed, coefficients=coefficients)
        return self.last

    def _factors(self, rated: Iterable[Rated]) -> dict[int, _Rate]:
        """Return what changes are multiplied by before they are measured, where that is not 1, by parameter."""
        if not self._limit.decay:
            return {}
        return {
            id(parameter): _quotient(self._limit.peak(group, begun), group["lr"])
            for group, begun, parameters in rated
            for parameter in parameters
        }

    def _take_back(
        self,
        weights: list[Tensor],
        changes: list[Tensor],
        owners: list[int],
        scales: list[_Rate],
        coefficients: Tensor,
    ) -> None:
        chosen = list(range(len(weights)))
        if coefficients.device.type == "cpu":  # where looking costs nothing, what is allowed keeps its bits
            free = (coefficients == 1).tolist()
            chosen = [index for index in chosen if not free[owners[index]]]
        if not chosen:
            return
        excess = (coefficients - 1).unbind()
        moved = [changes[index] for index in chosen]
        torch._foreach_mul_(moved, _placed([excess[owners[index]] / scales[index] for index in chosen], moved))
        torch._foreach_add_([weights[index] for index in chosen], moved)


def begun_rate(group: Mapping[str, Any]) -> _Rate:
    """Return the learning rate that a group has now, for the time when a schedule has changed it."""
    rate: _Rate = group["lr"]
    return rate.clone() if isinstance(rate, Tensor) else rate


def begun_rates(optimizer: Optimizer) -> list[_Rate]:
    """Return the learning rates that an optimizer's groups have now."""
    return [begun_rate(group) for group in optimizer.param_groups]


def rated_groups(optimizer: Optimizer, begun: Sequence[_Rate]) -> list[Rated]:
    """Return the groups of an optimizer with the rates that they began with, and their parameters.

    Args:
        optimizer: the optimizer.
        begun: what :func:`begun_rates` returned; a group that came later begins now.

    Returns:
        One of each.
    """
    groups = optimizer.param_groups
    rates = [*begun, *(group["lr"] for group in groups[len(begun) :])]
    return [(group, rate, group["params"]) for group, rate in zip(groups, rates, strict=True)]


def _quotient(peak: _Rate, rate: _Rate) -> _Rate:
    """Return how many times larger a change would be at the peak; of a rate of 0 there is none."""
    if isinstance(rate, Tensor):
        return torch.where(rate == 0, torch.ones_like(rate), peak / rate)
    return peak / rate if rate else 1.0


def _placed(factors: Sequence[_Rate], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return factors as tensors beside what they multiply."""
    return [
        factor.to(tensor.device)
        if isinstance(factor, Tensor)
        else torch.full((), factor, dtype=torch.float64, device=tensor.device)
        for factor, tensor in zip(factors, tensors, strict=True)
    ]
