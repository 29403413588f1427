"""A step that is taken on zeros in place of the weights, which then get as much of it as they may."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from evenkeel.clipping import ClipResult, copied_norms, weight_names, weight_norms
from evenkeel.optim._lists import Lists
from evenkeel.optim._max_update import UpdateLimit, limit_coefficients
from evenkeel.optim._multiply import multiply_
from evenkeel.partition import Components

__all__ = ["OnZeros"]

_Rate = float | Tensor


@final
@dataclass(frozen=True, kw_only=True)
class OnZeros:
    """An update of AdamW whose steps come to lie beside the weights. ``G`` groups, ``C`` components.

    Attributes:
        parts: the components.
        limit: how far a step may go.
        real: the optimizer's groups, ``G`` of them.
        groups: the groups to update by: without weight decay, and with the rate that steps are measured with.
        lists: the tensors to update, with zeros in place of the weights.
    """

    parts: Components
    limit: UpdateLimit
    real: Sequence[dict[str, Any]]
    groups: list[dict[str, Any]]
    lists: list[Lists]

    @classmethod
    def of(
        cls,
        parts: Components,
        limit: UpdateLimit,
        groups: Sequence[dict[str, Any]],
        lists: Sequence[Lists],
        begun: Sequence[_Rate],
    ) -> OnZeros:
        """Lay out zeros.

        Args:
            parts: the components.
            limit: how far a step may go.
            groups: the optimizer's groups.
            lists: their tensors.
            begun: the learning rate that each group was given.

        Returns:
            The update that is to be made.
        """
        rates = [limit.peak(group, rate) for group, rate in zip(groups, begun, strict=True)]
        return cls(
            parts=parts,
            limit=limit,
            real=groups,
            groups=[{**group, "lr": rate, "weight_decay": 0.0} for group, rate in zip(groups, rates, strict=True)],
            lists=[replace(one, targets=[torch.zeros_like(weight) for weight in one.params]) for one in lists],
        )

    def apply(self, found_inf: Tensor | None) -> ClipResult:
        """Change the weights, once the update was made; nothing waits for the device.

        Args:
            found_inf: where it is not 0, weights do not decay either; None for 0.

        Returns:
            The norms of the steps, what was allowed, and the coefficients.
        """
        steps = {id(weight): step for one in self.lists for weight, step in zip(one.params, one.targets, strict=True)}
        pieces = [piece for part in self.parts for piece in part.pieces]
        found = {  # of what has no gradient there is no step
            name: piece.of(steps[id(piece.tensor())]) if id(piece.tensor()) in steps else ()
            for name, piece in zip(weight_names(self.parts), pieces, strict=True)
        }
        norms = copied_norms(self.parts, found)
        allowed = self.limit.allowed(self.parts, weight_norms(self.parts).to(norms))
        coefficients = limit_coefficients(norms, allowed)
        for real, group, one in zip(self.real, self.groups, self.lists, strict=True):
            here = {id(weight) for weight in one.params}
            self._apply(real, _ratio(real["lr"], group["lr"]), here, steps, coefficients, found_inf)
        return ClipResult(
            names=tuple(part.name for part in self.parts), norms=norms, thresholds=allowed, coefficients=coefficients
        )

    def _apply(
        self,
        group: dict[str, Any],
        ratio: _Rate,
        here: set[int],
        steps: dict[int, Tensor],
        coefficients: Tensor,
        found_inf: Tensor | None,
    ) -> None:
        """Decay the weights of one group by their coefficients, and add their steps times these."""
        decay = coefficients * (group["lr"] * group["weight_decay"])
        if found_inf is not None:
            decay = decay * (1 - found_inf.to(decay))
        weights: list[Tensor] = []
        changes: list[Tensor] = []
        owners: list[int] = []
        for owner, part in enumerate(self.parts):
            for piece in part.pieces:
                weight = piece.tensor()
                if id(weight) in here:
                    views = piece.of(weight)
                    weights.extend(views)
                    changes.extend(piece.of(steps[id(weight)]))
                    owners.extend([owner] * len(views))
        if not weights:
            return
        if isinstance(group["weight_decay"], Tensor) or group["weight_decay"]:
            multiply_(self.parts, weights, owners, 1 - decay)
        multiply_(self.parts, changes, owners, coefficients * ratio)
        torch._foreach_add_(weights, changes)


def _ratio(rate: _Rate, measured: _Rate) -> _Rate:
    """Return how many times the measured step is to be made; of a rate of 0 nothing is left to make."""
    if rate is measured:
        return 1.0
    if isinstance(measured, Tensor):
        return torch.where(measured == 0, torch.zeros_like(measured), rate / measured)
    return rate / measured if measured else 0.0
