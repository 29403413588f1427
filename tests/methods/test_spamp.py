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

from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import FullFineTuning, Method, parse_mix
from evenkeel.methods.spamp import GradientShaping
from evenkeel.testing import MethodContract


class Twin:
    """The equations for one tensor, entry by entry, with Python's numbers."""

    def __init__(self, beta: float, least: float) -> None:
        self.beta, self.least = beta, least
        self.threshold: float | None = None
        self.exponents: list[float] = []

    def shaped(self, gradient: Tensor) -> Tensor:
        norm = norm_of(gradient)
        if not 0 < norm < math.inf:
            return gradient.double()
        self.threshold = norm if self.threshold is None else self.beta * self.threshold + (1 - self.beta) * norm
        exponent = self.least + (1 - self.least) * min(1.0, self.threshold / norm)
        self.exponents.append(exponent)
        entries = [math.copysign(abs(entry) ** exponent, entry) for entry in gradient.double().flatten().tolist()]
        after = math.sqrt(math.fsum(entry**2 for entry in entries))
        shaped = torch.tensor(entries, dtype=torch.float64).reshape(gradient.shape)
        return shaped * min(1.0, self.threshold / after)


@pytest.mark.parametrize("exponent", [0.7, pytest.param(1.0, marks=pytest.mark.slow)])
def test_it_is_the_equations(arguments: Arguments, exponent: float) -> None:
    twins: dict[str, Twin] = {}

    def shape(step: int, grads: Mapping[str, Tensor]) -> None:
        for name, grad in grads.items():
            if not name.endswith("key.bias"):  # zero but for rounding, which is another in each computation
                grad.copy_(twins.setdefault(name, Twin(0.9, exponent)).shaped(grad))

    assert_clips_like(arguments, GradientShaping(beta=0.9, exponent=exponent), shape)
    assert min(min(twin.exponents) for twin in twins.values()) < 0.75 or exponent == 1


ROWS = st.lists(
    st.lists(st.sampled_from([0.0, 1e-6, -0.3, 1.0, -40.0, math.inf, math.nan]), min_size=3, max_size=3),
    min_size=1,
    max_size=8,
)


@settings(max_examples=30)
@given(rows=ROWS, beta=st.sampled_from([0.0, 0.5, 0.99]), least=st.sampled_from([0.3, 0.7, 1.0]))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_these_after_all_gradients(
    dtype: torch.dtype, rows: list[list[float]], beta: float, least: float
) -> None:
    found, twin = Gradients(GradientShaping(beta=beta, exponent=least), {"one": (3,)}, dtype), Twin(beta, least)
    for row in rows:
        gradient = torch.tensor(row, dtype=dtype)
        wanted = twin.shaped(gradient)
        got = found.after({"one": gradient})["one"].double()
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-12, equal_nan=True)


def test_a_gradient_up_to_its_usual_norm_is_left_alone_bit_for_bit() -> None:
    found = Gradients(GradientShaping(), {"one": (7,), "other": (7,)}, torch.float32)
    for shrink in (1.0, 0.9, 0.3):
        gradient = shrink * torch.randn(7, generator=torch.Generator().manual_seed(0))
        assert torch.equal(found.after({"one": gradient})["one"], gradient)


def test_a_larger_one_ends_at_its_threshold_with_entries_more_alike() -> None:
    found = Gradients(GradientShaping(beta=0.99), {"one": (2,)}, torch.float64)
    found.after({"one": torch.tensor([1e-3, 0.0], dtype=torch.float64)})
    large = found.after({"one": torch.tensor([1e-2, 1e-3], dtype=torch.float64)})["one"]
    threshold = 0.99 * 1e-3 + 0.01 * math.hypot(1e-2, 1e-3)
    assert large.norm().item() == pytest.approx(threshold)
    assert 4 < (large[0] / large[1]).item() < 6  # 10 to the power of 0.73


def test_narrow_gradients_are_shaped_in_float32() -> None:
    found = Gradients(GradientShaping(), {"one": (4,)}, torch.bfloat16)
    twin = Twin(0.99, 0.7)
    for size in (1.0, 30.0):
        gradient = torch.full((4,), size, dtype=torch.bfloat16)
        wanted = twin.shaped(gradient)
        torch.testing.assert_close(found.after({"one": gradient})["one"].double(), wanted, rtol=1e-2, atol=0)


def test_nothing_waits_for_the_device() -> None:
    found = Gradients(GradientShaping(), {"one": (2, 2), "other": (3,)}, torch.float32)
    gradients = {"one": torch.ones(2, 2), "other": torch.ones(3)}
    found.after(gradients)
    with NoSynchronisation():
        found.after(gradients)


@pytest.mark.parametrize("more", [{"in_backward": True}, {"optimizer": "clipped-adamw"}])
def test_ways_without_room_are_refused(arguments: Arguments, more: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match="spamp changes gradients"):
        MethodTrainer(_models.bert(), arguments(), methods=["spamp"], train_dataset=DATA, **more)


def test_other_clipping_is_no_company() -> None:
    with pytest.raises(MethodError, match="each decides how gradients are clipped"):
        parse_mix("spamp+component-clip")


@pytest.mark.parametrize(
    ("name", "bad"),
    [("beta", [1, -0.1, math.nan, None, True]), ("exponent", [0, 1.1, math.nan, None, "0.7"])],
)
def test_what_cannot_be_is_refused(name: str, bad: list[Any]) -> None:
    for value in bad:
        with pytest.raises(MethodError, match=rf"spamp: {name} must be .*, but got .*; "):
            GradientShaping(**{name: value})


class TestGradientShapingContract(MethodContract):
    def make(self) -> Method:
        return GradientShaping(beta=0.9)

    def neutral(self) -> Method:
        return GradientShaping(beta=0.0)

    def twin(self) -> tuple[Method]:
        return (FullFineTuning(max_norm=math.inf),)
