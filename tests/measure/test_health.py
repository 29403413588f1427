from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.errors import MeasureError
from evenkeel.measure import nonfinite, share_clipped, spikes, vanishing

NAN = math.nan


# --- vanishing gradients


def falling(to: float, *, steps: int = 40, layers: int = 4) -> np.ndarray:
    """Norms that fall from 1 to ``to`` within the first half, and stay there."""
    return np.tile(np.geomspace(1, to, steps // 2).tolist() + [to] * (steps // 2), (layers, 1)).T


def test_gradients_that_collapse_vanish() -> None:
    found = vanishing(falling(1e-4))
    assert found.vanished
    assert found.share == 1.0
    assert (found.ratios < 1e-3).all()


def test_gradients_that_stay_do_not() -> None:
    found = vanishing(np.random.default_rng(0).lognormal(size=(50, 6)))
    assert not found.vanished
    assert found.share == 0.0


def test_a_model_that_has_learnt_is_no_failed_one() -> None:
    norms = falling(1e-4)
    assert not vanishing(norms, reference=norms[:, 0]).vanished  # the head's gradient fell as much
    assert vanishing(norms, reference=np.ones(len(norms))).vanished


def test_half_of_the_layers_make_a_run() -> None:
    both = np.concatenate([falling(1e-4, layers=2), falling(0.5, layers=2)], axis=1)
    assert vanishing(both).vanished
    assert vanishing(both).share == 0.5
    assert not vanishing(both[:, 1:]).vanished


def test_a_layer_counts_from_where_it_was_released() -> None:
    norms = falling(0.5, steps=20)
    later = np.concatenate([np.full((20, 4), NAN), norms])
    np.testing.assert_array_equal(vanishing(later).ratios, vanishing(norms).ratios)


def test_medians_are_those_that_are_said() -> None:
    values = np.array([8.0, 2.0, 4.0, 1.0, 3.0, 5.0, 0.5, 0.25, 1.0, 2.0, 7.0])[:, None]  # 2 first, 6 last of 11
    assert vanishing(values).ratios[0] == np.median([5.0, 0.5, 0.25, 1.0, 2.0, 7.0]) / np.median([8.0, 2.0])


@pytest.mark.parametrize("norms", [np.empty((0, 2)), [[1.0, 1.0]], [[0.0, NAN], [1.0, NAN]], np.empty((5, 0))])
def test_what_cannot_be_told_has_not_vanished(norms: np.ndarray) -> None:
    found = vanishing(norms)
    assert np.isnan(found.ratios).all()
    assert math.isnan(found.share)
    assert not found.vanished


def test_gradients_that_become_zero_vanish() -> None:
    assert vanishing([[1.0], [0.0], [0.0], [0.0]]).vanished


def test_shapes_must_fit() -> None:
    with pytest.raises(MeasureError, match=r"norms must be of shape \[steps, layers\], but it is \(3,\)"):
        vanishing([1.0, 2.0, 3.0])
    with pytest.raises(MeasureError, match="there are 2 reference norms for 3 others"):
        vanishing([[1.0], [2.0], [3.0]], reference=[1.0, 1.0])


# --- spikes


def test_a_jump_above_the_noise_is_a_spike() -> None:
    rng = np.random.default_rng(0)
    losses = 0.5 + 0.01 * rng.standard_normal(60)
    assert not spikes(losses).any()
    losses[40] = 1.0
    assert np.flatnonzero(spikes(losses)).tolist() == [40]


def test_noise_as_large_as_the_jump_hides_it() -> None:
    losses = 1 + 0.5 * np.random.default_rng(0).standard_normal(60)
    losses[40] = 2.0
    assert not spikes(losses)[40]


@given(st.lists(st.floats(0, 10), max_size=30))
def test_a_loss_that_only_falls_has_no_spikes(losses: list[float]) -> None:
    assert not spikes(sorted(losses, reverse=True)).any()


@given(st.lists(st.floats(0, 10), min_size=1, max_size=30), st.integers(-3, 3))
def test_the_unit_of_the_loss_does_not_count(losses: list[float], power: int) -> None:
    assert spikes(losses).tolist() == spikes(np.array(losses) * 2.0**power).tolist()


def test_of_the_first_five_nothing_is_said_and_nan_is_passed_over() -> None:
    assert not spikes([1, 1, 1, 1, 100]).any()
    assert spikes([1, NAN, 1, 1, math.inf, 1, 1, 100]).tolist() == [False] * 7 + [True]


# --- clipping, and numbers that are none


def test_the_share_clipped_is_over_what_is_known() -> None:
    shares = share_clipped([[1.0, 0.5, NAN], [0.9, 0.5, NAN], [NAN, 0.5, NAN], [1.0, 0.0, NAN]])
    np.testing.assert_allclose(shares, [1 / 3, 1.0, NAN])
    assert share_clipped([1.0, 0.5]) == 0.5
    assert share_clipped(np.empty((0, 2))).shape == (2,)


def test_steps_with_a_number_that_is_none() -> None:
    assert nonfinite([0.5, NAN, math.inf, -math.inf, 0.0]).tolist() == [False, True, True, True, False]
    assert nonfinite(np.empty((0, 3))).tolist() == []
