"""What can be stepped on its own: components that share no parameter with others."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from evenkeel.clipping import MaxNorm, as_threshold
from evenkeel.clipping.thresholds import Fixed, Seen, Threshold
from evenkeel.errors import ThresholdError
from evenkeel.partition import Components

__all__ = ["Unit", "units_of"]


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Components that are complete at the same time: one, or those that a tensor was cut into.

    Attributes:
        parts: the components, ``C`` of them.
        places: where they are among all components.
        parameters: their parameters that the optimizer trains.
        threshold: what their norms may be; one that learns belongs to this unit alone.
        shares: for each of the optimizer's groups that has some of the parameters its place, and these.
        fresh: the state of the threshold at the beginning.
    """

    parts: Components
    places: tuple[int, ...]
    parameters: tuple[Tensor, ...]
    threshold: Threshold
    shares: tuple[tuple[int, tuple[Tensor, ...]], ...]
    fresh: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the first component."""
        return self.parts[0].name

    def pass_over(self, norm_type: float) -> None:
        """Let the threshold see a step without a gradient, as it would where all components are clipped together."""
        if self.threshold.needs_weights or isinstance(self.threshold, Fixed):
            return  # these remember nothing
        self.threshold.bind(self.parts)
        device = self.parameters[0].device
        norms = torch.zeros(len(self.parts), dtype=torch.float32, device=device)
        self.threshold.limits(Seen(norms=norms, norm_type=norm_type))

    def begin_anew(self) -> None:
        """Let the threshold forget what it has learnt."""
        if self.fresh:
            self.threshold.load_state_dict(copy.deepcopy(self.fresh))


def units_of(parts: Components, optimizer: Optimizer, max_norm: MaxNorm) -> list[Unit]:
    """Part the components of an optimizer's parameters.

    Args:
        parts: the components.
        optimizer: trains some of their parameters, or all.
        max_norm: what the components' norms may be.

    Returns:
        The units; components without a parameter that is trained are in none.

    Raises:
        ThresholdError: if the threshold looks at several components together.
    """
    group_of = {
        id(parameter): place for place, group in enumerate(optimizer.param_groups) for parameter in group["params"]
    }
    unit_of: dict[int, list[int]] = {}  # parameter -> the components of its unit, one list for all of a unit
    for index, part in enumerate(parts):
        trained = [id(parameter) for parameter in part.parameters if id(parameter) in group_of]
        joined = {id(unit_of[key]): unit_of[key] for key in trained if key in unit_of}
        members = sorted({index, *(member for unit in joined.values() for member in unit)})
        keys = set(trained) | {key for key, unit in unit_of.items() if id(unit) in joined}
        unit_of.update(dict.fromkeys(keys, members))
    threshold = as_threshold(max_norm, parts)
    if not threshold.separate:
        raise ThresholdError(
            f"{threshold!r} looks at components together, and in backward one is stepped before the next one's "
            "gradient is there; use a number, numbers by role, or a threshold of each component's own (Ema(warmup=0), "
            "Percentile, ZScore), or clip after backward"
        )
    found = {id(members): members for members in unit_of.values()}
    return [_unit(parts, members, threshold, group_of) for members in found.values()]


def _unit(parts: Components, members: Sequence[int], threshold: Threshold, group_of: dict[int, int]) -> Unit:
    own = Components([parts[member] for member in members])
    parameters = tuple(
        {id(tensor): tensor for part in own for tensor in part.parameters if id(tensor) in group_of}.values()
    )
    places = sorted({group_of[id(parameter)] for parameter in parameters})
    mine = (
        Fixed(tuple(threshold.values[member] for member in members))
        if isinstance(threshold, Fixed)
        else copy.deepcopy(threshold)
    )
    return Unit(
        parts=own,
        places=tuple(members),
        parameters=parameters,
        threshold=mine,
        fresh=copy.deepcopy(mine.state_dict()),
        shares=tuple((place, tuple(p for p in parameters if group_of[id(p)] == place)) for place in places),
    )
