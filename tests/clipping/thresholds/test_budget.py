from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.clipping.thresholds._drive import INF, NAN, NoSynchronisation, bag

from evenkeel import Components
from evenkeel.clipping.thresholds import Budget, Limits, Seen
from evenkeel.errors import ThresholdError

SHARES = st.sampled_from(["sqrt_size", "equal"])
ORDERS = st.sampled_from([1.0, 2.0, 3.0, 0.5, INF])


def limits(budget: Budget, parts: Components, **seen: Any) -> Limits:
    budget.bind(parts)
    with NoSynchronisation():
        return budget.limits(Seen(norms=torch.ones(len(parts), dtype=torch.float64), **seen))


def shares(total: float, share: str, sizes: list[int], others: tuple[int, int], order: float) -> list[float]:
    """Each one's part of the total, in plain Python."""
    if order == INF:
        return [total for _ in sizes]
    parts = [
        size / (sum(sizes) + others[1]) if share == "sqrt_size" else 1 / (len(sizes) + others[0]) for size in sizes
    ]
    return [total * part ** (1 / order) for part in parts]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), SHARES, ORDERS, st.sampled_from([(0, 0), (3, 40)]))
def test_it_is_each_ones_part(sizes: list[int], share: Any, order: float, others: tuple[int, int]) -> None:
    got = limits(Budget(1.5, share=share), bag(*sizes), norm_type=order, elsewhere=others).thresholds
    assert got.tolist() == pytest.approx(shares(1.5, share, sizes, others, order), rel=1e-12)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), SHARES, st.sampled_from([1.0, 2.0, 3.0, INF]))
def test_the_whole_is_bounded_by_the_total(sizes: list[int], share: Any, order: float) -> None:
    got = limits(Budget(0.7, share=share), bag(*sizes), norm_type=order).thresholds
    assert torch.linalg.vector_norm(got, order).item() == pytest.approx(0.7, rel=1e-12)


def test_sizes_of_all_stages_come_before_those_of_this_one() -> None:
    got = limits(Budget(1.0), bag(4, 1), sizes=(16, 4), elsewhere=(1, 80)).thresholds
    assert got.tolist() == pytest.approx([0.4, 0.2])


def test_other_components_get_other_shares() -> None:
    budget = Budget(1.0, share="equal")
    assert limits(budget, bag(1, 1, 1, 1)).thresholds.tolist() == [0.5] * 4
    assert limits(budget, bag(7)).thresholds.tolist() == [1.0]


def test_numbers_are_copied_once() -> None:
    budget, parts = Budget(), bag(1, 2)
    assert limits(budget, parts).thresholds is limits(budget, parts).thresholds


def test_a_component_without_entries_is_no_trouble() -> None:
    assert limits(Budget(), bag(0, 4)).thresholds.tolist() == [0.0, 1.0]
    assert limits(Budget(), bag(0)).thresholds.tolist() == [0.0]


def test_without_components_it_says_what_to_do() -> None:
    with pytest.raises(ThresholdError, match="call bind"):
        Budget().limits(Seen(norms=torch.ones(2)))
    budget = Budget()
    budget.bind(bag(1, 1))
    with pytest.raises(ThresholdError, match=r"shape \(3,\), but the threshold is bound to 2"):
        budget.limits(Seen(norms=torch.ones(3)))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"total": bad}, "total") for bad in (0, -1, NAN, INF, True, "1")] + [({"share": "size"}, "share")],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(ThresholdError, match=f"Budget.{name} must be .*, but got .*; "):
        Budget(**arguments)


def test_it_shows_its_configuration() -> None:
    assert repr(Budget(2.0)) == "Budget(total=2.0, share='sqrt_size')"
