"""Which settings hold for which parameter in a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from evenkeel.optim._lists import Lists
from evenkeel.optim._numbers import numbers, numbers_on_device

__all__ = ["Settings"]


@final
@dataclass(frozen=True, kw_only=True)
class Settings:
    """The optimizer groups of a step, split where parameters were updated more or less often.

    ``K`` kinds: a group, and the number of its step.

    Attributes:
        places: the kind of every parameter that has a gradient, by its ``id``.
        groups: the group of every kind.
        steps: a step counter of every kind, 0-dimensional; they count up when :meth:`advance` is called.
        lists: all tensors.
        correct_bias: whether moments are corrected for beginning at 0.
    """

    places: Mapping[int, int]
    groups: list[dict[str, Any]]
    steps: list[Tensor]
    lists: Sequence[Lists]
    correct_bias: bool

    @classmethod
    def of(cls, groups: Sequence[dict[str, Any]], lists: Sequence[Lists], *, correct_bias: bool) -> Settings:
        """Sort the parameters of a step.

        Args:
            groups: the optimizer's groups.
            lists: the tensors of each.
            correct_bias: whether moments are corrected for beginning at 0.

        Returns:
            The settings. Counters that live on a device are not looked at: there, all of a group count as equal.
        """
        kinds: dict[tuple[int, float | None], int] = {}
        places: dict[int, int] = {}
        found: list[tuple[dict[str, Any], Tensor]] = []
        for index, (group, one) in enumerate(zip(groups, lists, strict=True)):
            for parameter, step in zip(one.params, one.state_steps, strict=True):
                kind = index, step.item() if step.is_cpu else None
                if kind not in kinds:
                    kinds[kind] = len(kinds)
                    found.append((group, step))
                places[id(parameter)] = kinds[kind]
        return cls(
            places=places,
            groups=[group for group, _ in found],
            steps=[step for _, step in found],
            lists=lists,
            correct_bias=correct_bias,
        )

    def advance(self, found_inf: Tensor | None) -> None:
        """Count the step, but where ``found_inf`` is not 0.

        Args:
            found_inf: 0 or 1, on the device of the counters; None counts in any case.
        """
        for one in self.lists:
            if one.state_steps:
                # As a tensor: of a number, each of the many additions would make one.
                torch._foreach_add_(one.state_steps, torch.ones((), device=one.state_steps[0].device), alpha=1.0)
                if found_inf is not None:
                    torch._foreach_sub_(one.state_steps, [found_inf.reshape(())] * len(one.state_steps))

    @property
    def signs(self) -> list[float]:
        """What the gradients of every kind are multiplied by to go where the group wants to go."""
        return [-1.0 if group["maximize"] else 1.0 for group in self.groups]

    def numbers(self) -> list[tuple[float, ...]]:
        """Return the seven numbers of every kind, ``K`` of them, where steps are counted on the host."""
        return [
            numbers(group, step.item(), correct_bias=self.correct_bias)
            for group, step in zip(self.groups, self.steps, strict=True)
        ]

    def numbers_on(self, device: torch.device) -> list[Tensor]:
        """Return the seven numbers of every kind as tensors on a device, without waiting for it."""
        return [
            numbers_on_device(group, step, correct_bias=self.correct_bias)
            if step.device == device
            else torch.tensor(
                numbers(group, step.item(), correct_bias=self.correct_bias), dtype=torch.float64, device="cpu"
            ).to(device, non_blocking=True)
            for group, step in zip(self.groups, self.steps, strict=True)
        ]
