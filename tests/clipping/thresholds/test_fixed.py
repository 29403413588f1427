from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.clipping.thresholds._drive import INF, NAN, NoSynchronisation

from evenkeel.clipping.thresholds import Fixed, Seen
from evenkeel.errors import ThresholdError


@given(st.lists(st.sampled_from([0.05, 1.0, 7.0, INF]), min_size=1, max_size=5))
def test_it_is_its_numbers(values: list[float]) -> None:
    norms = torch.full((len(values),), 2.0, dtype=torch.float64)
    with NoSynchronisation():
        limits = Fixed(tuple(values)).limits(Seen(norms=norms))
    assert limits.thresholds.tolist() == values
    assert limits.norms is norms
    assert limits.coefficients.tolist() == pytest.approx([min(1.0, value / (2 + 1e-6)) for value in values])


@pytest.mark.parametrize("values", [(1.0, 1.0), (1.0, 2.0)])
def test_numbers_are_copied_once_for_a_dtype(values: tuple[float, ...]) -> None:
    fixed = Fixed(values)
    first = fixed.limits(Seen(norms=torch.ones(2))).thresholds
    assert fixed.limits(Seen(norms=torch.zeros(2))).thresholds is first
    assert fixed.limits(Seen(norms=torch.ones(2, dtype=torch.float64))).thresholds.dtype == torch.float64


def test_another_number_of_norms_is_refused() -> None:
    with pytest.raises(ThresholdError, match=r"shape \(3,\), but the threshold is bound to 2 components"):
        Fixed((1.0, 2.0)).limits(Seen(norms=torch.ones(3)))


@pytest.mark.parametrize("values", [(), 1.0, [1.0], (0.0,), (1.0, NAN), (-1.0,), (True,), ("1",)])
def test_what_cannot_be_is_refused(values: Any) -> None:
    with pytest.raises(ThresholdError, match=r"Fixed\.values must be .*, but .*; "):
        Fixed(values)
