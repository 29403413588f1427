"""Four components, their norms over many steps, and what limits are compared by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from evenkeel.clipping.thresholds import Limits, Seen, Threshold
from evenkeel.partition import Components, components

__all__ = ["Stage", "check", "same", "same_limits", "spoilt"]

_ALL = (0, 1, 2, 3)


@final
class Stage:
    """A small network whose components a threshold is shown norms of."""

    def __init__(self, device: str) -> None:
        """Build the network on ``device``."""
        torch.manual_seed(0)
        self.device = device
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(device)
        whole = components(self.model)
        self._parts: dict[tuple[int, ...], Components] = {_ALL: whole}

    def parts(self, places: tuple[int, ...] = _ALL) -> Components:
        """Return the components at these places, always the same object for the same places."""
        if places not in self._parts:
            self._parts[places] = Components([self._parts[_ALL][place] for place in places])
        return self._parts[places]

    def history(self, count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Return the norms of ``count`` steps; every ninth is a spike."""
        generator = torch.Generator().manual_seed(count)
        drawn = torch.randn(count, len(_ALL), generator=generator, dtype=torch.float64).mul(0.3).exp()
        drawn[4::9] *= 30
        return list(drawn.to(self.device, dtype).unbind())

    def step(self, threshold: Threshold, norms: Tensor, places: tuple[int, ...] = _ALL) -> Limits:
        """Show a threshold one step of the components at these places."""
        threshold.bind(self.parts(places))
        if places != _ALL:
            norms = torch.stack([norms[place] for place in places])
        weights = None
        if threshold.needs_weights:
            weights = torch.stack([torch.full_like(norms[0], 0.5 * (1 + place)) for place in places])
        return threshold.limits(Seen(norms=norms, weights=weights))

    def run(self, threshold: Threshold, history: Sequence[Tensor]) -> list[Limits]:
        """Show a threshold some steps of all components."""
        return [self.step(threshold, norms) for norms in history]


def spoilt(norms: Tensor, places: Sequence[int], value: float) -> Tensor:
    """Return norms that are ``value`` at these places."""
    changed = norms.clone()
    changed[list(places)] = value
    return changed


def check(good: bool, message: str) -> None:
    """Fail with ``message`` unless all is ``good``; Python's -O must not switch this off."""
    if not good:
        raise AssertionError(message)


def same(got: Any, wanted: Any, message: str) -> None:
    """Fail unless two tensors, or structures of tensors, are equal; NaN equals NaN."""
    torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True, msg=lambda detail: f"{message}\n{detail}")


def same_limits(got: Sequence[Limits], wanted: Sequence[Limits], message: str) -> None:
    """Fail unless limits are equal, step by step."""
    check(len(got) == len(wanted), f"{len(got)} steps against {len(wanted)}")
    for one, other in zip(got, wanted, strict=True):
        same(one.thresholds, other.thresholds, message)
        same(one.norms, other.norms, message)
