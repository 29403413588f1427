from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from tests.methods._clipped_by_hand import EPSILON, Arguments, assert_clips_like, norm_of
from torch import Tensor

from evenkeel.errors import MethodError
from evenkeel.methods import FullFineTuning, Method
from evenkeel.methods.zclip import ZClip
from evenkeel.testing import MethodContract


def test_it_is_the_published_rule(arguments: Arguments) -> None:
    norms: list[float] = []
    moments: dict[str, float] = {}
    clipped: list[int] = []

    def clip(step: int, grads: Mapping[str, Tensor]) -> None:
        norm = norm_of(*grads.values())
        if step < 2:
            norms.append(norm)
            moments.update(mean=float(np.mean(norms)), variance=float(np.var(norms)))
            return
        deviation = math.sqrt(moments["variance"])
        score = (norm - moments["mean"]) / (deviation + 1e-6)
        if score > 1.5:
            threshold = moments["mean"] + 1.5 * deviation / (score / 1.5)
            for grad in grads.values():
                grad.mul_(min(1.0, threshold / (norm + EPSILON)))
            norm = threshold
            clipped.append(step)
        moments["mean"] = 0.8 * moments["mean"] + 0.2 * norm
        moments["variance"] = 0.8 * moments["variance"] + 0.2 * (norm - moments["mean"]) ** 2

    assert_clips_like(arguments, ZClip(z=1.5, alpha=0.8, warmup=2), clip)
    assert clipped == [2, 4]  # the spikes


def test_the_defaults_are_the_papers() -> None:
    assert ZClip() == ZClip(z=2.5, alpha=0.97, warmup=25)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("z", [0, -1, math.inf, math.nan, None, "2"]),
        ("alpha", [1, -0.1, math.nan, None, True]),
        ("warmup", [1, 0, 2.5, math.inf, None, True]),
    ],
)
def test_what_cannot_be_is_refused(name: str, bad: list[Any]) -> None:
    for value in bad:
        with pytest.raises(MethodError, match=rf"zclip: {name} must be .*, but got .*; "):
            ZClip(**{name: value})


class TestZClipContract(MethodContract):
    def make(self) -> Method:
        return ZClip(z=0.01, warmup=2)

    def neutral(self) -> Method:
        return ZClip(warmup=1000)

    def twin(self) -> tuple[Method]:
        return (FullFineTuning(max_norm=math.inf),)
