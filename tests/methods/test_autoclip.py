from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from tests.methods._clipped_by_hand import EPSILON, Arguments, assert_clips_like, norm_of
from torch import Tensor

from evenkeel.errors import MethodError
from evenkeel.methods import Method
from evenkeel.methods.autoclip import AutoClip
from evenkeel.testing import MethodContract


@pytest.mark.parametrize(("p", "window"), [(10, 10_000), (60, 10_000), (50, 2)])
def test_it_is_the_papers_algorithm(arguments: Arguments, p: float, window: int) -> None:
    norms: list[float] = []

    def clip(step: int, grads: Mapping[str, Tensor]) -> None:
        norms.append(norm_of(*grads.values()))
        threshold = np.percentile(norms[-window:], p)
        for grad in grads.values():
            grad.mul_(min(1.0, threshold / (norms[-1] + EPSILON)))

    assert_clips_like(arguments, AutoClip(p=p, window=window), clip)


def test_the_defaults_are_the_papers() -> None:
    assert AutoClip() == AutoClip(p=10.0, window=10_000)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("p", [-1, 100.5, math.nan, math.inf, None, "10", True]),
        ("window", [0, 10_000_001, 1.5, math.inf, None, "all", True]),
    ],
)
def test_what_cannot_be_is_refused(name: str, bad: list[Any]) -> None:
    for value in bad:
        with pytest.raises(MethodError, match=rf"autoclip: {name} must be .*, but got .*; "):
            AutoClip(**{name: value})


class TestAutoClipContract(MethodContract):
    def make(self) -> Method:
        return AutoClip()
