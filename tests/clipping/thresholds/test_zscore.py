from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.clipping.thresholds._drive import INF, NAN, Rows, coefficient, compare, history, show, stacked, usable

from evenkeel.clipping.thresholds import ZScore
from evenkeel.errors import ThresholdError


def zclip(rows: Rows, z: float, alpha: float, warmup: int) -> tuple[Rows, Rows]:
    """ZClip in plain Python, for each component."""
    first: list[list[float]] = [[] for _ in rows[0]]
    mean, variance = [0.0] * len(rows[0]), [0.0] * len(rows[0])
    thresholds, coefficients = [], []
    for row in rows:
        allowed = []
        for place, norm in enumerate(row):
            limit = INF
            if len(first[place]) < warmup:
                if usable(norm):
                    first[place].append(norm)
                    mean[place] = sum(first[place]) / len(first[place])
                    variance[place] = sum((value - mean[place]) ** 2 for value in first[place]) / len(first[place])
            else:
                deviation = variance[place] ** 0.5
                score = (norm - mean[place]) / (deviation + 1e-6)
                if score > z:
                    limit = mean[place] + z * z / score * deviation
                if usable(norm):
                    kept = min(norm, limit)
                    mean[place] = alpha * mean[place] + (1 - alpha) * kept
                    variance[place] = alpha * variance[place] + (1 - alpha) * (kept - mean[place]) ** 2
            allowed.append(limit)
        thresholds.append(allowed)
        coefficients.append([coefficient(limit, norm) for limit, norm in zip(allowed, row, strict=True)])
    return thresholds, coefficients


@pytest.mark.parametrize("examples", [5, pytest.param(15, marks=pytest.mark.slow)])
def test_it_is_the_papers_rule(examples: int) -> None:
    @settings(max_examples=examples)
    @given(
        st.integers(0, 10**6),
        st.sampled_from([2.5, 1.0]),
        st.sampled_from([0.97, 0.5, 0.0]),
        st.sampled_from([2, 25]),
    )
    def agrees(seed: int, z: float, alpha: float, warmup: int) -> None:
        rows = history(seed)
        compare(show(ZScore(z, alpha=alpha, warmup=warmup), rows), *zclip(rows, z, alpha, warmup))

    agrees()


@pytest.mark.parametrize("examples", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_in_float32_it_is_that_rule_too(examples: int) -> None:
    @settings(max_examples=examples)
    @given(st.integers(0, 10**6))
    def agrees(seed: int) -> None:
        # Whether a norm on the very edge is a spike may be rounded either way: take spikes that are none or clear ones.
        rows = history(seed, useless=False)
        wanted, _ = zclip(rows, 2.5, 0.97, 25)
        got = stacked(show(ZScore(), rows, dtype=torch.float32))
        both = got.isfinite() & torch.tensor(wanted).isfinite()
        assert int((got.isfinite() != torch.tensor(wanted).isfinite()).sum()) == 0
        assert int(both.sum()) > 0
        torch.testing.assert_close(got[both], torch.tensor(wanted, dtype=torch.float64)[both], rtol=1e-4, atol=0)

    agrees()


def test_the_farther_out_the_more_is_clipped() -> None:
    start: Rows = [[value] for value in (1.0, 3.0)]
    near = show(ZScore(2.0, warmup=2), [*start, [6.0]])[-1].thresholds.item()
    far = show(ZScore(2.0, warmup=2), [*start, [60.0]])[-1].thresholds.item()
    assert 2.0 < far < near < 6.0


def test_an_infinite_norm_is_clipped_to_the_mean() -> None:
    last = show(ZScore(warmup=2), [[1.0], [3.0], [INF]])[-1]
    assert last.thresholds.tolist() == [2.0]
    assert last.coefficients.tolist() == [0.0]


def test_huge_norms_do_not_blind_it() -> None:
    # Their squares are beyond float32.
    rows: Rows = [[1e30], [3e30], [1e31]]
    assert show(ZScore(2.0, warmup=2), rows, dtype=torch.float32)[-1].thresholds.item() == pytest.approx(2.5e30)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"z": bad}, "z") for bad in (0, -1.0, NAN, INF, True, "2")]
    + [({"alpha": bad}, "alpha") for bad in (1.0, -0.1, NAN, True)]
    + [({"warmup": bad}, "warmup") for bad in (0, 1, 2.5, True)],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(ThresholdError, match=f"ZScore.{name} must be .*, but got .*; "):
        ZScore(**arguments)
