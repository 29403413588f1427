from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.clipping.thresholds._drive import INF, NAN, Rows, bag, coefficient, compare, history, show, stacked, usable

from evenkeel.clipping.thresholds import Ema, Seen
from evenkeel.errors import ThresholdError


def adagc(rows: Rows, ratio: float, beta: float, warmup: int, bound: float) -> tuple[Rows, Rows]:
    """AdaGC in plain Python; a norm that tells nothing is no step of its component."""
    gamma: list[float | None] = [None] * len(rows[0])
    seen = [0] * len(rows[0])
    thresholds, coefficients = [], []
    for row in rows:
        total = math.sqrt(math.fsum(norm * norm for norm in row))
        allowed, multiplied = [], []
        for place, norm in enumerate(row):
            warm, average = seen[place] < warmup, gamma[place]
            counted = total if warm and math.isfinite(total) else norm
            after = INF if average is None else ratio * average
            limit = bound if warm else after
            allowed.append(limit)
            multiplied.append(coefficient(limit, counted))
            if not usable(norm):
                continue
            clipped = norm * min(1.0, limit / counted)
            if average is None:
                gamma[place] = clipped
            elif warm:
                gamma[place] = min(average, clipped)
            else:
                gamma[place] = beta * average + (1 - beta) * clipped
            seen[place] += 1
        thresholds.append(allowed)
        coefficients.append(multiplied)
    return thresholds, coefficients


@pytest.mark.parametrize("examples", [5, pytest.param(15, marks=pytest.mark.slow)])
def test_it_is_the_papers_rule(examples: int) -> None:
    @settings(max_examples=examples)
    @given(
        st.integers(0, 10**6),
        st.sampled_from([1.05, 0.7, 3.0]),
        st.sampled_from([0.98, 0.5, 0.0]),
        st.sampled_from([0, 1, 20]),
        st.sampled_from([torch.float32, torch.float64]),
    )
    def agrees(seed: int, ratio: float, beta: float, warmup: int, dtype: torch.dtype) -> None:
        rows = history(seed)
        got = show(Ema(ratio, beta=beta, warmup=warmup, warmup_max_norm=2.0), rows, dtype=dtype)
        compare(got, *adagc(rows, ratio, beta, warmup, 2.0))

    agrees()


def test_the_warm_up_is_global_clipping() -> None:
    (limits,) = show(Ema(warmup=1, warmup_max_norm=2.5), [[3.0, 4.0]])
    torch.testing.assert_close(limits.norms, torch.tensor([5.0, 5.0], dtype=torch.float64))
    torch.testing.assert_close(limits.coefficients, torch.tensor([0.5, 0.5], dtype=torch.float64), rtol=1e-6, atol=0)


def test_the_warm_up_sees_the_norm_of_all_stages() -> None:
    (limits,) = show(Ema(warmup=1), [[3.0, 4.0]], whole=torch.tensor(10.0, dtype=torch.float64))
    assert limits.norms.tolist() == [10.0, 10.0]


@pytest.mark.parametrize("useless", [NAN, INF])
def test_in_the_warm_up_a_bad_norm_stays_in_its_component(useless: float) -> None:
    (limits,) = show(Ema(warmup=1, warmup_max_norm=2.0), [[useless, 4.0]])
    assert limits.coefficients[1].item() == pytest.approx(0.5, rel=1e-6)
    assert limits.coefficients[0].item() == pytest.approx(NAN if math.isnan(useless) else 0.0, nan_ok=True)


def test_tiny_norms_do_not_shrink_their_average() -> None:
    # With the coefficient's 1e-6 in the average, it would fall to nothing.
    got = stacked(show(Ema(warmup=0), [[1e-8]] * 500))
    assert got[-1].item() == pytest.approx(1.05e-8)


def test_a_component_that_comes_later_has_a_warm_up_of_its_own() -> None:
    threshold = Ema(warmup=2, warmup_max_norm=7.0)
    both = bag(1, 1)
    threshold.bind(both[:1])
    for _ in range(3):
        threshold.limits(Seen(norms=torch.ones(1)))
    threshold.bind(both)
    limits = threshold.limits(Seen(norms=torch.ones(2)))
    assert limits.thresholds.tolist() == pytest.approx([1.05, 7.0])
    assert limits.norms.tolist() == pytest.approx([1.0, math.sqrt(2)])


BAD: list[tuple[dict[str, Any], str]] = [
    *[({"ratio": bad}, "Ema.ratio") for bad in (0, -1.0, NAN, INF, True, "1", None, 1e300)],
    *[({"beta": bad}, "Ema.beta") for bad in (1, -0.1, NAN, True, "0.9")],
    *[({"warmup": bad}, "Ema.warmup") for bad in (-1, 1.5, True, "3")],
    *[({"warmup_max_norm": bad}, "Ema.warmup_max_norm") for bad in (0.0, NAN, False, INF)],
]


@pytest.mark.parametrize(("arguments", "name"), BAD)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(ThresholdError, match=f"{name} must be .*, but got .*; "):
        Ema(**arguments)


def test_it_shows_its_configuration() -> None:
    assert repr(Ema(2.0, warmup=3)) == "Ema(ratio=2.0, beta=0.98, warmup=3, warmup_max_norm=1.0)"
