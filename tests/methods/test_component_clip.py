from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
from tests import _models
from tests.methods._clipped_by_hand import EPSILON, Arguments, assert_clips_like, norm_of
from torch import Tensor

from evenkeel import components
from evenkeel.errors import ComponentError, ThresholdError
from evenkeel.methods import ComponentClipping, FullFineTuning, Method, Setting
from evenkeel.testing import MethodContract


def test_it_is_the_papers_formula(arguments: Arguments) -> None:
    def clip(step: int, grads: Mapping[str, Tensor]) -> None:
        for grad in grads.values():
            grad.mul_(min(1.0, 0.05 / (norm_of(grad) + EPSILON)))

    assert_clips_like(arguments, ComponentClipping(), clip)


def test_thresholds_by_role_and_components_by_module(arguments: Arguments) -> None:
    def clip(step: int, grads: Mapping[str, Tensor]) -> None:
        modules: dict[str, list[Tensor]] = {}
        for name, grad in grads.items():
            modules.setdefault(name.rpartition(".")[0], []).append(grad)
        for name, members in modules.items():
            limit = 0.01 if name.endswith("query") else 0.2
            factor = min(1.0, limit / (norm_of(*members) + EPSILON))
            for grad in members:
                grad.mul_(factor)

    assert_clips_like(arguments, ComponentClipping(max_norm={"query": 0.01, "*": 0.2}, by="module"), clip)


def test_thresholds_that_name_nothing_are_refused() -> None:
    model = _models.bert()
    setting = Setting(model=model, parts=components(model))
    ComponentClipping(max_norm={"query": 0.1, "*": 1.0}).check(setting)
    for thresholds, said in (({"qeury": 0.1, "*": 1.0}, "'qeury'"), ({"query": 0.1}, "says nothing of")):
        with pytest.raises(ThresholdError, match=said):
            ComponentClipping(max_norm=thresholds).check(setting)


@pytest.mark.parametrize("bad", [0, -1, math.nan, True, "1", None, {}, {"query": 0}, {1: 1.0}, 10**400])
def test_thresholds_are_positive(bad: Any) -> None:
    with pytest.raises(ThresholdError, match="component-clip: max_norm"):
        ComponentClipping(max_norm=bad)
    with pytest.raises(ComponentError, match="unknown by of component-clip 'tensors': did you mean 'tensor'"):
        ComponentClipping(by="tensors")  # type: ignore[arg-type]


class TestComponentClippingContract(MethodContract):
    def make(self) -> Method:
        return ComponentClipping()

    def neutral(self) -> Method:
        return ComponentClipping(max_norm=math.inf)

    def twin(self) -> tuple[Method]:
        return (FullFineTuning(max_norm=math.inf),)


class TestClippingByLayerContract(MethodContract):
    def make(self) -> Method:
        return ComponentClipping(by="layer")

    def neutral(self) -> Method:
        return ComponentClipping(max_norm=1.0, by="global")
