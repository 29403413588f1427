from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from evenkeel.calibrate import role_thresholds
from evenkeel.errors import MeasureError

NORMS = arrays.arrays(np.float64, st.tuples(st.integers(1, 30), st.just(3)), elements=st.floats(1e-4, 10))


@given(norms=NORMS, quantile=st.floats(0.05, 0.95))
def test_a_threshold_clips_the_share_that_it_says(norms: np.ndarray, quantile: float) -> None:
    for one, columns in zip(role_thresholds(norms, ["query", "query", "head"], quantile), ([0, 1], [2]), strict=True):
        seen = norms[:, columns]
        assert one.max_norm == pytest.approx(np.quantile(seen, quantile), rel=0.06)  # to two digits
        assert one.clipped == pytest.approx((seen > one.max_norm).mean())
        assert one.most_clipped == pytest.approx((seen > one.max_norm).mean(axis=0).max())
        assert one.clipped_by_paper == pytest.approx((seen > 0.05).mean())


def test_gradients_that_are_zero_by_nature_move_no_threshold() -> None:
    norms = np.column_stack([np.linspace(0.1, 1, 10), np.full(10, 1e-10)])  # a key's bias
    (found,) = role_thresholds(norms, ["key", "key"], 0.5)
    assert found.max_norm == 0.55
    assert found.clipped == pytest.approx(0.25)
    assert found.most_clipped == pytest.approx(0.5)


def test_a_role_without_gradients_is_not_clipped() -> None:
    (found,) = role_thresholds(np.zeros((4, 1)), [None], 0.9)
    assert (found.role, found.max_norm, found.clipped) == ("other", math.inf, 0.0)


@pytest.mark.parametrize("quantile", [0, 1, -0.5, float("nan")])
def test_quantiles_that_are_no_share_are_refused(quantile: float) -> None:
    with pytest.raises(MeasureError, match="would clip everything or nothing; give a number between 0 and 1"):
        role_thresholds(np.ones((1, 1)), ["head"], quantile)
