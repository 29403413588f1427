"""What tests of thresholds share: components to speak of, norms over many steps, and a watch on the device."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from evenkeel import Components, components
from evenkeel.clipping.thresholds import Limits, Seen, Threshold

INF, NAN = math.inf, math.nan
EPSILON = 1e-6
Rows = list[list[float]]


class NoSynchronisation(TorchDispatchMode):
    """Fails where a value, a size or a truth would have to come back from the device."""

    WAITS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket).rpartition(".")[2]
        assert name not in self.WAITS, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def bag(*sizes: int) -> Components:
    """Components ``p0``, ``p1``, ... of these sizes."""
    return components(nn.ParameterDict({f"p{index}": torch.zeros(size) for index, size in enumerate(sizes)}))


def history(seed: int, *, steps: int = 120, count: int = 3, useless: bool = True) -> Rows:
    """Norms of ``count`` components that drift, jump, and at times tell nothing."""
    source = random.Random(seed)
    level = [10 ** source.uniform(-2, 2) for _ in range(count)]
    rows = []
    for _ in range(steps):
        level = [value * math.exp(source.gauss(0, 0.05)) for value in level]
        row = [value * math.exp(source.gauss(0, 0.3)) for value in level]
        for place in range(count):
            chance = source.random()
            if chance < 0.05:
                row[place] *= 100
            elif useless and chance < 0.15:
                row[place] = source.choice([0.0, INF, NAN])
        rows.append(row)
    return rows


def show(
    threshold: Threshold, rows: Sequence[Sequence[float]], *, dtype: torch.dtype = torch.float64, **seen: Any
) -> list[Limits]:
    """Bind the threshold and show it the rows, under the watch."""
    threshold.bind(bag(*[1] * len(rows[0])))
    with NoSynchronisation():
        return [threshold.limits(Seen(norms=torch.tensor(row, dtype=dtype), **seen)) for row in rows]


def stacked(limits: Sequence[Limits]) -> Tensor:
    """The thresholds of all steps, in float64."""
    return torch.stack([limit.thresholds for limit in limits]).double()


def compare(got: Sequence[Limits], thresholds: Rows, coefficients: Rows | None = None) -> None:
    """Compare what a threshold said with what its twin said."""
    precise = got[0].thresholds.dtype == torch.float64
    tolerance = 1e-9 if precise else 2e-4  # float32 rounds in each of the steps
    wanted = torch.tensor(thresholds, dtype=torch.float64)
    torch.testing.assert_close(stacked(got), wanted, rtol=tolerance, atol=0, equal_nan=True)
    if coefficients is not None:
        have = torch.stack([limit.coefficients for limit in got]).double()
        torch.testing.assert_close(
            have, torch.tensor(coefficients, dtype=torch.float64), rtol=tolerance, atol=0, equal_nan=True
        )


def usable(norm: float) -> bool:
    return math.isfinite(norm) and norm > 0


def coefficient(threshold: float, norm: float) -> float:
    """As the contract has it."""
    if math.isnan(norm):
        return NAN
    return 1.0 if threshold == INF else min(1.0, threshold / (norm + EPSILON))
