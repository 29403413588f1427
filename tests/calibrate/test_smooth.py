from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from evenkeel.calibrate import smooth
from evenkeel.errors import MeasureError

NUMBERS = st.floats(-10, 10, allow_subnormal=False)
CURVES = arrays.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(2, 20)), elements=NUMBERS)
WIDTHS = st.floats(0.3, 3)


@given(slope=NUMBERS, level=NUMBERS, width=WIDTHS, count=st.integers(2, 20))
def test_a_straight_line_stays_as_it_is(slope: float, level: float, width: float, count: int) -> None:
    x = np.linspace(-2, 3, count) if count > 10 else np.arange(float(count))
    found = smooth(x, (level + slope * x)[None], width)
    np.testing.assert_allclose(found.values, level + slope * x, atol=1e-6)
    np.testing.assert_allclose(found.slopes, slope, atol=1e-6)
    np.testing.assert_allclose(found.errors, 0, atol=1e-6)


@given(curves=CURVES, factor=st.floats(-5, 5), shift=NUMBERS, width=WIDTHS)
def test_units_of_the_curve_do_not_matter(curves: np.ndarray, factor: float, shift: float, width: float) -> None:
    x = np.arange(float(curves.shape[1]))
    one, other = smooth(x, curves, width), smooth(x, factor * curves + shift, width)
    np.testing.assert_allclose(other.values, factor * one.values + shift, atol=1e-5)
    np.testing.assert_allclose(other.slopes, factor * one.slopes, atol=1e-5)
    np.testing.assert_allclose(other.errors, abs(factor) * one.errors, atol=1e-5)


@given(curves=CURVES, width=WIDTHS)
def test_neither_the_order_of_seeds_nor_the_direction_matters(curves: np.ndarray, width: float) -> None:
    x = np.arange(float(curves.shape[1]))
    one = smooth(x, curves, width)
    np.testing.assert_allclose(smooth(x, curves[::-1], width).values, one.values, atol=1e-8)
    turned = smooth(-x[::-1], curves[:, ::-1], width)
    np.testing.assert_allclose(turned.values[::-1], one.values, atol=1e-8)
    np.testing.assert_allclose(turned.slopes[::-1], -one.slopes, atol=1e-6)


def test_each_place_is_a_weighted_least_squares_fit() -> None:
    generator = np.random.default_rng(0)
    x, y = np.sort(generator.random(12)), generator.random((3, 12))
    found = smooth(x, y, 0.2)
    for i in range(12):
        weights = np.exp(-0.25 * ((x - x[i]) / 0.2) ** 2)  # polyfit squares them
        slope, level = np.polyfit(x - x[i], y.mean(axis=0), 1, w=weights)
        assert found.values[i] == pytest.approx(level)
        assert found.slopes[i] == pytest.approx(slope)


def test_the_error_is_that_of_the_curve() -> None:
    generator = np.random.default_rng(1)
    x = np.arange(40.0)
    curves = [smooth(x, generator.normal(size=(3, 40)), 3.0) for _ in range(400)]
    seen = np.std([curve.values[20] for curve in curves])
    assert np.mean([curve.errors[20] for curve in curves]) == pytest.approx(seen, rel=0.15)


@pytest.mark.parametrize(
    ("places", "curves", "said"),
    [
        (np.arange(1.0), np.zeros((1, 1)), r"\(1, 1\).*cannot be smoothed; give \[S, K\]"),
        (np.arange(3.0), np.zeros((1, 2)), "cannot be smoothed"),
        (np.arange(2.0), np.array([[1.0, np.nan]]), "no numbers cannot be smoothed; cut it"),
    ],
)
def test_refusals(places: np.ndarray, curves: np.ndarray, said: str) -> None:
    with pytest.raises(MeasureError, match=said):
        smooth(places, curves, 1.0)
