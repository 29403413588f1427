from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.clipping.thresholds._drive import INF, NAN, Rows, coefficient, compare, history, show, stacked, usable

from evenkeel.clipping.thresholds import CappedEma
from evenkeel.errors import ThresholdError


def aggc(rows: Rows, early: float, late: float, beta: float, cap: float, total: int | None) -> tuple[Rows, Rows]:
    """AGGC's published rule in plain Python, without its lower bound."""
    average = [0.0] * len(rows[0])
    thresholds, coefficients = [], []
    for step, row in enumerate(rows):
        ratio = early
        if total is not None:
            share = min(1.0, max(0.0, (step / total - 0.4) / 0.3))
            ratio = early * (1 - share) + late * share
        allowed = []
        for place, norm in enumerate(row):
            upper = ratio * average[place]
            limit = INF if average[place] == 0 else upper
            if usable(norm):
                scale = max(limit / norm, cap) if norm > limit else 1.0
                limit = max(limit, cap * norm)
                average[place] = beta * average[place] + (1 - beta) * norm * scale
            allowed.append(limit)
        thresholds.append(allowed)
        coefficients.append([coefficient(limit, norm) for limit, norm in zip(allowed, row, strict=True)])
    return thresholds, coefficients


@pytest.mark.parametrize("examples", [5, pytest.param(15, marks=pytest.mark.slow)])
def test_it_is_the_published_rule(examples: int) -> None:
    @settings(max_examples=examples)
    @given(
        st.integers(0, 10**6),
        st.sampled_from([(0.6, 0.7), (1.2, 0.8)]),
        st.sampled_from([0.95, 0.0]),
        st.sampled_from([0.9, 0.0]),
        st.sampled_from([None, 100]),
        st.sampled_from([torch.float32, torch.float64]),
    )
    def agrees(
        seed: int, ratios: tuple[float, float], beta: float, cap: float, total: int | None, dtype: torch.dtype
    ) -> None:
        rows = history(seed)
        threshold = CappedEma(ratios[0], late_ratio=ratios[1], beta=beta, cap=cap, total_steps=total)
        compare(show(threshold, rows, dtype=dtype), *aggc(rows, *ratios, beta, cap, total))

    agrees()


def test_no_step_is_clipped_by_more_than_the_cap() -> None:
    rows = history(0, useless=False)
    got = show(CappedEma(), rows)
    least = min(float(limits.coefficients.min()) for limits in got)
    assert least == pytest.approx(0.9, rel=1e-3)


def test_steady_norms_are_multiplied_by_the_cap() -> None:
    got = stacked(show(CappedEma(), [[2.0]] * 200))
    assert got[0].item() == INF
    torch.testing.assert_close(got[1:], torch.full((199, 1), 1.8, dtype=torch.float64))


def test_an_infinite_norm_is_clipped_to_what_was_usual() -> None:
    got = show(CappedEma(beta=0.0), [[1.0], [INF]])
    assert got[1].thresholds.tolist() == [0.6]
    assert got[1].coefficients.tolist() == [0.0]


BAD: list[tuple[dict[str, Any], str]] = [
    *[({name: bad}, name) for name in ("ratio", "late_ratio") for bad in (0, NAN, True, "1")],
    *[({"beta": bad}, "beta") for bad in (1.0, -1, NAN)],
    *[({"cap": bad}, "cap") for bad in (1.1, -0.1, NAN, True)],
    *[({"total_steps": bad}, "total_steps") for bad in (0, 1.5, True)],
    *[({"change": bad}, "change") for bad in (0.5, (0.5,), (0.7, 0.4), (0.4, 0.4), (-0.1, 1), (0, 1.1), (0, NAN))],
]


@pytest.mark.parametrize(("arguments", "name"), BAD)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(ThresholdError, match=f"CappedEma.{name} must be .*, but got .*; "):
        CappedEma(**arguments)


@pytest.mark.parametrize("state", [None, {}, {"calls": torch.tensor(1)}, {"names": [], "average": torch.ones(0)}])
def test_what_is_no_state_is_refused(state: Any) -> None:
    with pytest.raises(ThresholdError, match="CappedEma cannot load a state"):
        CappedEma().load_state_dict(state)
