from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.clipping.thresholds._drive import INF, NAN, Rows, coefficient, compare, history, show, usable

from evenkeel.clipping.thresholds import Percentile
from evenkeel.errors import ThresholdError


def autoclip(rows: Rows, p: float, window: int) -> tuple[Rows, Rows]:
    """AutoClip with NumPy, for each component, over the last ``window`` usable norms."""
    past: list[list[float]] = [[] for _ in rows[0]]
    thresholds, coefficients = [], []
    for row in rows:
        for norms, norm in zip(past, row, strict=True):
            if usable(norm):
                norms.append(norm)
        allowed = [float(np.percentile(norms[-window:], p)) if norms else INF for norms in past]
        thresholds.append(allowed)
        coefficients.append([coefficient(limit, norm) for limit, norm in zip(allowed, row, strict=True)])
    return thresholds, coefficients


@pytest.mark.slow
@settings(max_examples=20)
@given(
    st.integers(0, 10**6),
    st.one_of(st.sampled_from([0, 10, 50, 90.0, 100]), st.floats(0, 100)),
    st.sampled_from([1, 2, 7, 32, 256]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_it_is_numpys_percentile_of_the_norms_so_far(seed: int, p: float, window: int, dtype: torch.dtype) -> None:
    rows = history(seed)
    compare(show(Percentile(p, window=window), rows, dtype=dtype), *autoclip(rows, p, window))


def test_the_greatest_clips_nothing() -> None:
    rows = history(1, useless=False)
    for limits, row in zip(show(Percentile(100, window=1000), rows), rows, strict=True):
        assert bool((limits.thresholds >= torch.tensor(row, dtype=torch.float64)).all())


def test_memory_is_bounded() -> None:
    threshold = Percentile(window=8)
    show(threshold, history(2))
    assert threshold.state_dict()["ring"].shape == (3, 8)


def test_a_state_of_another_window_is_refused() -> None:
    used = Percentile(window=8)
    show(used, history(3, steps=3))
    with pytest.raises(ThresholdError, match=r"'ring' of shape \(3, 8\), because it needs \(3, 9\)"):
        Percentile(window=9).load_state_dict(used.state_dict())


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"p": bad}, "p") for bad in (-1, 100.1, NAN, True, "10", None)]
    + [({"window": bad}, "window") for bad in (0, -1, 2.5, True, "9")],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(ThresholdError, match=f"Percentile.{name} must be .*, but got .*; "):
        Percentile(**arguments)


def test_it_shows_its_configuration() -> None:
    assert repr(Percentile(25)) == "Percentile(p=25, window=256)"
