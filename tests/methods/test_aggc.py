from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
from tests import _models
from tests.methods._clipped_by_hand import EPSILON, Arguments, assert_clips_like, norm_of
from torch import Tensor

from evenkeel import components
from evenkeel.errors import MethodError
from evenkeel.methods import Method
from evenkeel.methods.aggc import AGGC
from evenkeel.testing import MethodContract

ROLES = {  # of BERT's parameters, by what their names hold; the first that fits
    "classifier": "head",
    "pooler": "pooler",
    "LayerNorm": "norm",
    "embeddings": "embedding",
    "self.query": "query",
    "self.key": "key",
    "self.value": "value",
    "attention.output": "attention_output",
    "intermediate": "ffn_in",
    "output": "ffn_out",
}


def role_of(name: str) -> str:
    return next(role for word, role in ROLES.items() if word in name)


@pytest.mark.parametrize("total", [None, 4])
def test_it_is_the_published_rule(arguments: Arguments, total: int | None) -> None:
    average: dict[str, float] = {}

    def clip(step: int, grads: Mapping[str, Tensor]) -> None:
        groups: dict[str, list[Tensor]] = {}
        for name, grad in grads.items():
            groups.setdefault(role_of(name), []).append(grad)
        assert len(groups) == len(set(ROLES.values()))
        rise = 0.0 if total is None else min(1.0, max(0.0, (step / total - 0.4) / (0.7 - 0.4)))
        ratio = 0.5 + (0.8 - 0.5) * rise
        for role, members in groups.items():
            norm, old = norm_of(*members), average.get(role, 0.0)
            threshold = max(ratio * old, 0.9 * norm) if old > 0 else math.inf
            for grad in members:
                grad.mul_(min(1.0, threshold / (norm + EPSILON)))
            average[role] = 0.6 * old + 0.4 * min(norm, threshold)

    method = AGGC(ratio=0.5, late_ratio=0.8, beta=0.6, total_steps=total)
    assert_clips_like(arguments, method, clip)


def test_without_a_cap_spikes_are_cut_down(arguments: Arguments) -> None:
    average: dict[str, float] = {}

    def clip(step: int, grads: Mapping[str, Tensor]) -> None:
        norms: dict[str, float] = {}
        for role in set(map(role_of, grads)):
            norms[role] = norm_of(*(grad for name, grad in grads.items() if role_of(name) == role))
        for name, grad in grads.items():
            old = average.get(role_of(name), 0.0)
            if old > 0:
                grad.mul_(min(1.0, 2.0 * old / (norms[role_of(name)] + EPSILON)))
        for role, norm in norms.items():
            old = average.get(role, 0.0)
            average[role] = 0.5 * old + 0.5 * (min(norm, 2.0 * old) if old > 0 else norm)

    assert_clips_like(arguments, AGGC(ratio=2.0, beta=0.5, cap=0.0), clip)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("ratio", [0, -1, math.inf, math.nan, None, "1"]),
        ("late_ratio", [0, -1, math.inf, None]),
        ("beta", [1, -0.1, math.nan, True]),
        ("cap", [-0.1, 1.1, math.nan, None]),
        ("total_steps", [0, 1.5, math.inf, "all", True]),
    ],
)
def test_what_cannot_be_is_refused(name: str, bad: list[Any]) -> None:
    for value in bad:
        with pytest.raises(MethodError, match=rf"aggc: {name} must be .*, but got .*; "):
            AGGC(**{name: value})


def test_the_twin_knows_every_parameter() -> None:
    parts = components(_models.bert())
    assert {part.name: part.role for part in parts} == {part.name: role_of(part.name) for part in parts}


class TestAGGCContract(MethodContract):
    def make(self) -> Method:
        return AGGC(cap=0.3, beta=0.5)
