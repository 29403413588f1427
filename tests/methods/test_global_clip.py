from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
from tests.methods._clipped_by_hand import EPSILON, Arguments, assert_clips_like, norm_of
from torch import Tensor

from evenkeel.errors import MethodError
from evenkeel.methods import ComponentClipping, Method, parse_method, parse_mix
from evenkeel.methods.global_clip import GlobalClipping
from evenkeel.testing import MethodContract


def test_the_whole_gradient_has_the_papers_threshold(arguments: Arguments) -> None:
    def clip(step: int, grads: Mapping[str, Tensor]) -> None:
        factor = min(1.0, 0.05 / (norm_of(*grads.values()) + EPSILON))
        for grad in grads.values():
            grad.mul_(factor)

    assert_clips_like(arguments, GlobalClipping(), clip)


def test_it_is_component_clipping_of_one_component(arguments: Arguments) -> None:
    assert GlobalClipping().max_norm == ComponentClipping().max_norm
    assert parse_method("global-clip:max_norm=inf") == GlobalClipping(max_norm=math.inf)


@pytest.mark.parametrize("bad", [0, -1, math.nan, None, "1", True, {"query": 1.0}, [1.0]])
def test_thresholds_are_positive_numbers(bad: Any) -> None:
    with pytest.raises(MethodError, match=r"global-clip: max_norm must be a number above 0 or inf, but got .*; to"):
        GlobalClipping(max_norm=bad)


@pytest.mark.parametrize("other", ["full", "component-clip", "adagc", "agc", "autoclip", "zclip", "aggc", "mosbach"])
def test_gradients_are_clipped_one_way(other: str) -> None:
    with pytest.raises(MethodError, match="each decides how gradients are clipped"):
        parse_mix(f"global-clip+{other}")


class TestGlobalClippingContract(MethodContract):
    def make(self) -> Method:
        return GlobalClipping()

    def neutral(self) -> Method:
        return GlobalClipping(max_norm=1.0)
