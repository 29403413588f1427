from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.clipping.thresholds._drive import INF, NAN, bag

from evenkeel.clipping.thresholds import (
    Budget,
    CappedEma,
    Cosine,
    Ema,
    Fixed,
    Grouped,
    Limits,
    Linear,
    Percentile,
    Seen,
    Threshold,
    WeightRelative,
    ZScore,
)


def test_limits_say_what_gradients_are_multiplied_by() -> None:
    norms = torch.tensor([2.0, 0.5, INF, INF, NAN, NAN, 0.0])
    limits = Limits(thresholds=torch.tensor([1.0, 1.0, 1.0, INF, 1.0, INF, 1.0]), norms=norms)
    assert limits.coefficients.tolist() == pytest.approx([0.5, 1.0, 0.0, 1.0, NAN, NAN, 1.0], nan_ok=True, rel=1e-5)


def test_seen_says_what_is_of_use() -> None:
    seen = Seen(norms=torch.tensor([1.0, 0.0, INF, NAN]))
    assert seen.usable.tolist() == [True, False, False, False]
    assert Seen(norms=torch.tensor([3.0, 4.0])).total_norm.item() == 5.0
    assert Seen(norms=torch.tensor([3.0, 4.0]), whole=torch.tensor(7.0)).total_norm.item() == 7.0


MADE: list[Callable[[], Threshold]] = [
    lambda: Fixed((0.5, 1.0, INF)),
    Budget,
    WeightRelative,
    lambda: Linear(0.1, 1.0, 3),
    lambda: Cosine(0.1, 1.0, 3),
    lambda: Ema(warmup=2),
    lambda: CappedEma(total_steps=5),
    lambda: Percentile(30, window=4),
    lambda: ZScore(warmup=2),
    lambda: Grouped(Ema(warmup=2), by="global"),
    lambda: Grouped(Percentile(30, window=4), by="module"),
]


@pytest.mark.slow
@pytest.mark.parametrize("make", MADE, ids=lambda make: type(make()).__name__)
def test_compiled_it_is_one_graph_and_says_the_same(make: Callable[[], Threshold]) -> None:
    plain, traced, parts = make(), make(), bag(2, 3, 1)
    plain.bind(parts)

    def coefficients(norms: torch.Tensor) -> torch.Tensor:
        traced.bind(parts)
        return traced.limits(Seen(norms=norms, weights=norms)).coefficients

    torch._dynamo.reset()
    compiled = torch.compile(coefficients, fullgraph=True, backend="aot_eager")
    for step in range(6):
        norms = torch.rand(3, generator=torch.Generator().manual_seed(step)) * 3
        torch.testing.assert_close(compiled(norms), plain.limits(Seen(norms=norms, weights=norms)).coefficients)
