from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.clipping.thresholds._drive import INF, NAN
from torch import nn

from evenkeel import components
from evenkeel.clipping.thresholds import Seen, WeightRelative
from evenkeel.errors import ThresholdError

NORMS = st.lists(st.floats(0, 1e6), min_size=1, max_size=6)


@given(NORMS, st.sampled_from([0.01, 2.0]), st.sampled_from([1e-3, 5.0]))
def test_it_is_a_share_of_the_weights(weights: list[float], ratio: float, floor: float) -> None:
    seen = Seen(norms=torch.ones(len(weights), dtype=torch.float64), weights=torch.tensor(weights, dtype=torch.float64))
    got = WeightRelative(ratio, floor=floor).limits(seen).thresholds
    assert got.tolist() == pytest.approx([ratio * max(weight, floor) for weight in weights], rel=1e-12)


def test_thresholds_are_of_the_gradients_dtype() -> None:
    seen = Seen(norms=torch.ones(1, dtype=torch.float64), weights=torch.ones(1, dtype=torch.float32))
    assert WeightRelative().limits(seen).thresholds.dtype == torch.float64


def test_it_asks_for_weights() -> None:
    assert WeightRelative().needs_weights
    with pytest.raises(ThresholdError, match="not told the norms of the weights"):
        WeightRelative().limits(Seen(norms=torch.ones(1)))


def test_rows_are_not_its_business() -> None:
    rows = WeightRelative(0.02, floor=0.1, per="row")
    assert (rows.ratio, rows.floor, rows.per) == (0.02, 0.1, "row")
    with pytest.raises(ThresholdError, match="clip_grad_norm_ does it by itself"):
        rows.limits(Seen(norms=torch.ones(1), weights=torch.ones(1)))


def test_what_is_named_is_left_alone_by_role_or_path() -> None:
    parts = components(nn.ModuleDict({"body": nn.Linear(2, 2), "classifier": nn.Linear(2, 1)}))
    assert [part.role for part in parts] == ["other", "other", "head", "head"]
    seen = Seen(norms=torch.ones(4), weights=torch.ones(4))
    for unclipped, wanted in (
        (("head",), [0.5, 0.5, INF, INF]),
        (("*.bias", "of-nothing"), [0.5, INF, 0.5, INF]),
        ((), [0.5] * 4),
    ):
        rule = WeightRelative(0.5, unclipped=unclipped)
        rule.bind(parts)
        assert rule.limits(seen).thresholds.tolist() == wanted
        assert [rule.ratio_of(part) for part in parts] == wanted
    rule = WeightRelative(0.5, unclipped=("head",))
    with pytest.raises(ThresholdError, match="call bind"):
        rule.limits(seen)
    rule.bind(parts)
    rule.bind(parts[1:3])
    assert rule.limits(Seen(norms=torch.ones(2), weights=torch.ones(2))).thresholds.tolist() == [0.5, INF]


def test_it_has_no_state_to_load() -> None:
    rule = WeightRelative()
    rule.load_state_dict(rule.state_dict())
    with pytest.raises(ThresholdError, match="has no state"):
        rule.load_state_dict({"names": []})


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({name: bad}, name) for name in ("ratio", "floor") for bad in (0, -1, NAN, INF, True, "1")]
    + [({"per": "tensor"}, "per")]
    + [({"unclipped": bad}, "unclipped") for bad in ("head", ["head"], (1,), None)],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(ThresholdError, match=f"WeightRelative.{name} must be .*, but got .*; "):
        WeightRelative(**arguments)
