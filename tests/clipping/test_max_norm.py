from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
from tests import _models
from torch import nn

from evenkeel import components
from evenkeel.clipping import check_max_norm
from evenkeel.clipping._max_norm import resolve
from evenkeel.errors import ThresholdError

PARTS = components(_models.bert(3))


def thresholds(max_norm: Any) -> dict[str, float]:
    return dict(zip([part.path for part in PARTS], resolve(max_norm, PARTS), strict=True))


def test_one_number_is_everybodys_threshold() -> None:
    assert set(thresholds(1).values()) == {1.0}
    assert all(isinstance(value, float) for value in thresholds(1).values())


def test_the_first_role_or_pattern_that_fits_holds() -> None:
    found = thresholds({"layer.2.query.bias": 1, "query": 2.0, "layer.2.*": 3.0, "*": math.inf})
    assert found["layer.2.query.bias"] == 1.0
    assert found["layer.2.query.weight"] == found["layer.0.query.bias"] == 2.0
    assert found["layer.2.key.weight"] == 3.0
    assert found["head.weight"] == found["layer.1.key.weight"] == math.inf


def test_the_order_of_a_mapping_decides() -> None:
    assert set(thresholds({"*": 1.0, "query": 2.0}).values()) == {1.0}


def test_a_star_may_be_left_without_work() -> None:
    parts = components(nn.Linear(2, 1))
    assert resolve({"weight": 0.1, "bias": 0.2, "*": 1.0}, parts) == (0.1, 0.2)


@pytest.mark.parametrize(
    ("max_norm", "said"),
    [
        ({"querry": 0.1, "*": 1.0}, "names 'querry', .* no component here; the paths begin with embedding.word"),
        ({"layer.3.*": 0.1, "*": 1.0}, "names 'layer.3.*'"),
        ({"query": 0.1}, r"says nothing of 51 components, 'embedding.word' among them; add '\*'"),
    ],
)
def test_a_mapping_fits_the_components_or_is_refused(max_norm: Mapping[str, float], said: str) -> None:
    with pytest.raises(ThresholdError, match=said):
        thresholds(max_norm)


@pytest.mark.parametrize("number", [0, 0.0, -1.0, math.nan, -math.inf, True, "0.05", None, [0.05], 1j])
def test_what_is_no_positive_number_is_no_threshold(number: Any) -> None:
    with pytest.raises(ThresholdError, match=r"is no positive number; .* float\('inf'\)"):
        check_max_norm(number)
    with pytest.raises(ThresholdError, match=r"\(for 'query'\) is no positive number"):
        check_max_norm({"query": number})


@pytest.mark.parametrize("max_norm", [{}, {3: 0.1}, {None: 0.1}, {("query",): 0.1}])
def test_a_mapping_is_from_text_to_numbers(max_norm: Any) -> None:
    with pytest.raises(ThresholdError, match=r"empty mapping|is no text"):
        check_max_norm(max_norm)


@pytest.mark.parametrize("max_norm", [0.05, 5, math.inf, 1e-300, {"query": 1, "*": math.inf}])
def test_a_threshold_is_accepted(max_norm: Any) -> None:
    check_max_norm(max_norm)
