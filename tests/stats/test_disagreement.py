from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evenkeel.errors import DataError
from evenkeel.stats import disagreement


@given(arrays(np.int64, st.tuples(st.integers(2, 6), st.integers(1, 8)), elements=st.integers(-1, 3)))
def test_it_is_the_mean_over_all_pairs(predictions: np.ndarray) -> None:
    pairs = [np.mean(one != other) for one, other in itertools.combinations(predictions, 2)]
    assert disagreement(predictions) == pytest.approx(np.mean(pairs))


def test_texts_will_do_and_too_little_gives_nothing() -> None:
    assert disagreement([["yes", "no"], ["yes", "maybe"]]) == 0.5
    assert math.isnan(disagreement([[1, 2]]))
    assert math.isnan(disagreement(np.empty((3, 0))))
    with pytest.raises(DataError, match=r"must have two axes, runs and examples, but their shape is \(3,\)"):
        disagreement([1, 2, 3])
