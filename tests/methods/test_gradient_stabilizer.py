from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import _models
from tests.clipping.thresholds._drive import NoSynchronisation
from tests.integrations._training import DATA
from tests.methods._clipped_by_hand import Arguments, assert_clips_like, norm_of
from tests.methods._one_tensor import Gradients
from torch import Tensor

from evenkeel import components
from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import ComponentClipping, Method, Mix, parse_mix
from evenkeel.methods.gradient_stabilizer import GradientStabilizer
from evenkeel.testing import MethodContract


class Twin:
    """The published rule for one tensor, with Python's numbers."""

    def __init__(self, gamma1: float, gamma2: float, eps: float) -> None:
        self.gamma1, self.gamma2, self.eps = gamma1, gamma2, eps
        self.mean = self.square = 0.0
        self.steps = 0

    def factor(self, norm: float) -> float:
        if not 0 < norm < math.inf:
            return 1.0
        self.steps += 1
        self.mean = self.gamma1 * self.mean + (1 - self.gamma1) * norm
        self.square = self.gamma2 * self.square + (1 - self.gamma2) * norm**2
        mean, square = self.mean / (1 - self.gamma1**self.steps), self.square / (1 - self.gamma2**self.steps)
        return mean / (math.sqrt(square) + self.eps) / max(norm, self.eps)


def test_it_is_the_published_rule(arguments: Arguments) -> None:
    twins: dict[str, Twin] = {}

    def rescale(step: int, grads: Mapping[str, Tensor]) -> None:
        for name, grad in grads.items():
            grad.mul_(twins.setdefault(name, Twin(0.6, 0.999, 1e-6)).factor(norm_of(grad)))

    # An epsilon that leaves what is zero but for rounding, the gradients of keys' biases, at that.
    assert_clips_like(arguments, GradientStabilizer(eps=1e-6), rescale)


NORMS = st.lists(st.sampled_from([0.0, 1e-3, 0.5, 1.0, 7.0, 1e4, math.inf, math.nan]), min_size=1, max_size=12)


@settings(max_examples=30)
@given(norms=NORMS, gamma1=st.sampled_from([0.0, 0.6, 0.95]), gamma2=st.sampled_from([0.0, 0.9, 0.999]))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_that_rule_after_all_norms(dtype: torch.dtype, norms: list[float], gamma1: float, gamma2: float) -> None:
    found = Gradients(GradientStabilizer(gamma1=gamma1, gamma2=gamma2), {"one": (1,)}, dtype)
    twin = Twin(gamma1, gamma2, 1e-12)
    for norm in norms:
        given_ = torch.tensor([norm], dtype=dtype)
        wanted = given_.double() * twin.factor(norm)
        torch.testing.assert_close(
            found.after({"one": given_})["one"].double(), wanted, rtol=1e-5, atol=0, equal_nan=True
        )


def test_a_growing_spike_tends_to_a_bound() -> None:
    def after_spike(size: float) -> float:
        found = Gradients(GradientStabilizer(gamma2=0.9), {"one": (1,)}, torch.float64)
        for norm in [1.0] * 200 + [size]:
            length = found.after({"one": torch.tensor([norm], dtype=torch.float64)})["one"].item()
        return length

    assert after_spike(1e6) == pytest.approx(0.4 / math.sqrt(0.1), rel=1e-5)


def test_tensors_do_not_know_of_each_other_and_the_direction_stays() -> None:
    found = Gradients(GradientStabilizer(), {"one": (2, 2), "other": (3,)}, torch.float64)
    gradient = torch.tensor([[3.0, 0.0], [0.0, -4.0]], dtype=torch.float64)
    first = found.after({"one": gradient, "other": torch.full((3,), math.nan, dtype=torch.float64)})
    torch.testing.assert_close(first["one"], gradient / 5)
    assert first["other"].isnan().all()
    later = found.after({"other": torch.ones(3, dtype=torch.float64)})["other"]  # its first that tells something
    assert later.norm().item() == pytest.approx(1.0)


def test_nothing_waits_for_the_device() -> None:
    found = Gradients(GradientStabilizer(), {"one": (2, 2), "other": (3,)}, torch.float32)
    gradients = {"one": torch.ones(2, 2), "other": torch.ones(3)}
    found.after(gradients)
    with NoSynchronisation():
        found.after(gradients)


@pytest.mark.slow
def test_what_clips_in_a_mix_clips_first(arguments: Arguments) -> None:
    methods: list[Method] = [GradientStabilizer(), ComponentClipping(max_norm=1e-3)]
    trainer = MethodTrainer(_models.bert(), arguments(max_steps=1), methods=methods, train_dataset=DATA)
    trainer.train()
    assert trainer.last_clip is not None
    torch.testing.assert_close(trainer.last_clip.thresholds, torch.full_like(trainer.last_clip.thresholds, 1e-3))
    assert Mix((GradientStabilizer(),)).clipping(components(_models.bert())).max_norm == math.inf
    with pytest.raises(MethodError, match="another norm"):
        parse_mix("gradient-stabilizer+spamp")


@pytest.mark.parametrize("more", [{"in_backward": True}, {"optimizer": "clipped-adamw"}])
def test_ways_without_room_are_refused(arguments: Arguments, more: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match="gradient-stabilizer changes gradients"):
        MethodTrainer(_models.bert(), arguments(), methods=["gradient-stabilizer"], train_dataset=DATA, **more)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("gamma1", [1, -0.1, math.nan, None, True]),
        ("gamma2", [1, -0.1, math.nan, None, "0.9"]),
        ("eps", [0, -1, math.inf, math.nan, None]),
    ],
)
def test_what_cannot_be_is_refused(name: str, bad: list[Any]) -> None:
    for value in bad:
        with pytest.raises(MethodError, match=rf"gradient-stabilizer: {name} must be .*, but got .*; "):
            GradientStabilizer(**{name: value})


class TestGradientStabilizerContract(MethodContract):
    def make(self) -> Method:
        return GradientStabilizer(gamma2=0.9, eps=1e-4)  # what is zero but for rounding stays small
