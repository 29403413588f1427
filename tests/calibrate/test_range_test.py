from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.calibrate import RangeTest, learning_rate, range_test, rising_rates
from evenkeel.errors import MeasureError


def losses(rates: np.ndarray, *, fall: float, rise: float, noise: float = 0.0, seeds: int = 3) -> np.ndarray:
    """Make losses that fall by 0.3 around one rate and rise around another, each seen a step later."""
    x = np.log10(rates)
    after = 0.7 - 0.3 / (1 + np.exp(-6 * (x - np.log10(fall)))) + 3 / (1 + np.exp(-6 * (x - np.log10(rise))))
    seen = np.concatenate([[0.7], after[:-1]])
    return seen + noise * np.random.default_rng(0).normal(size=(seeds, len(rates)))


def test_where_the_loss_falls_and_rises() -> None:
    rates = rising_rates(1e-6, 1e-1, 60)
    found = range_test(rates, losses(rates, fall=1e-4, rise=3e-2, noise=0.01))
    assert found.falls
    assert found.steepest == pytest.approx(1e-4, rel=0.5)
    assert found.rises
    assert 2e-3 < found.stable < 3e-2
    assert found.start == pytest.approx(0.7, abs=0.01)
    proposed = learning_rate(found)
    assert proposed.value == found.steepest
    assert "the steepest descent of the loss; below a tenth of" in proposed.reason


def test_what_a_rate_did_is_seen_a_step_later() -> None:
    rates = rising_rates(1e-5, 1e-1, 5 * 8)
    seen = np.full((1, 40), 0.7)
    seen[:, 30:] = 0.1  # the step before, of rates[29], did it
    found = range_test(rates, seen)
    assert found.steepest in rates[28:31]
    np.testing.assert_array_equal(found.rates, rates[:-1])
    np.testing.assert_array_equal(found.losses, seen[:, 1:])


def test_a_rate_near_instability_is_not_proposed() -> None:
    rates = rising_rates(1e-6, 1e-1, 100)
    found = range_test(rates, losses(rates, fall=1e-3, rise=5e-3, noise=0.01))
    proposed = learning_rate(found)
    assert found.steepest is not None
    assert proposed.value == pytest.approx(found.stable / 10)
    assert "the steepest descent of the loss is at" in proposed.reason


def test_noise_alone_does_not_fall() -> None:
    rates = rising_rates(1e-6, 1e-1, 40)
    noise = 0.7 + 0.02 * np.random.default_rng(3).normal(size=(3, 40))
    found = range_test(rates, noise)
    assert (found.falls, found.steepest, found.rises) == (False, None, False)
    assert found.stable == found.rates[-1]
    assert "not shown to fall" in learning_rate(found).reason or "it never did" in learning_rate(found).reason


def test_nothing_counts_after_the_first_explosion() -> None:
    rates = rising_rates(1e-6, 1e-1, 50)
    whole = losses(rates, fall=1e-4, rise=1e3, noise=0.01)
    cut = whole.copy()
    cut[1, 40:] = np.nan
    found = range_test(rates, cut)
    assert len(found.rates) == 39
    assert found.rises  # it exploded, whatever the losses before that say
    assert not range_test(rates, whole).rises


@given(
    fall=st.floats(-5.5, -2),
    rise=st.floats(-4, 0),
    noise=st.floats(0, 0.3),
    seeds=st.integers(1, 4),
    steps=st.integers(10, 120),
    units=st.floats(0.1, 10),
)
def test_proposals_lie_inside_the_range(
    fall: float, rise: float, noise: float, seeds: int, steps: int, units: float
) -> None:
    rates = rising_rates(1e-6, 1e-1, steps)
    found = range_test(rates, units * losses(rates, fall=10**fall, rise=10**rise, noise=noise, seeds=seeds))
    marks = [found.lowest, found.stable] + [found.steepest] * found.falls
    assert all(rate in found.rates for rate in marks)
    assert found.lowest <= found.stable
    assert (found.steepest is not None) is found.falls
    assert found.steepest is None or found.steepest <= found.lowest
    assert rates[0] / 10 <= learning_rate(found).value <= found.stable / 10


def _same(one: RangeTest, other: RangeTest) -> bool:
    names = ("lowest", "falls", "steepest", "stable", "rises")
    return all(getattr(one, name) == getattr(other, name) for name in names)


@given(factor=st.sampled_from([0.25, 2.0, 64.0]), noise=st.floats(0.001, 0.1))
def test_units_of_the_loss_do_not_matter(factor: float, noise: float) -> None:
    rates = rising_rates(1e-6, 1e-1, 40)
    seen = losses(rates, fall=1e-4, rise=1e-2, noise=noise)
    assert _same(range_test(rates, seen), range_test(rates, factor * seen))


@pytest.mark.parametrize("left", [0, 1, 5])
def test_too_few_losses_are_refused(left: int) -> None:
    rates = rising_rates(1e-6, 1e-1, 20)
    seen = np.full((2, 20), 0.7)
    seen[1, left:] = np.nan
    with pytest.raises(MeasureError, match=f"only {left} losses .* needs 6; look at the data and the model, or begin"):
        range_test(rates, seen)


@pytest.mark.parametrize(("lowest", "highest"), [(0, 1), (1e-2, 1e-3), (1e-3, float("inf")), (float("nan"), 1)])
def test_rates_that_cannot_rise_are_refused(lowest: float, highest: float) -> None:
    with pytest.raises(MeasureError, match="the learning rate cannot rise from .* give two positive numbers"):
        rising_rates(lowest, highest, 10)


def test_one_step_does_not_rise() -> None:
    with pytest.raises(MeasureError, match="over 1 steps; it needs two"):
        rising_rates(1e-6, 1e-1, 1)
