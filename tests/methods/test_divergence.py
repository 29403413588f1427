from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from evenkeel.errors import MethodError
from evenkeel.methods._divergence import (
    check_divergence,
    divergence,
    squared_difference,
    symmetric_bernoulli,
    symmetric_kl,
)


def logits(rows: int, classes: int, seed: int, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, classes, generator=generator, dtype=torch.float64) * scale


def torchs_kl(one: Tensor, other: Tensor) -> Tensor:
    return F.kl_div(other.log_softmax(-1), one.log_softmax(-1), reduction="none", log_target=True).sum(-1)


@given(rows=st.integers(1, 5), classes=st.integers(1, 7), seed=st.integers(0, 100))
def test_symmetric_kl_is_the_sum_of_both_directions(rows: int, classes: int, seed: int) -> None:
    one, other = logits(rows, classes, seed), logits(rows, classes, seed + 1000)
    found = symmetric_kl(one, other)
    assert found.shape == (rows,)
    torch.testing.assert_close(found, torchs_kl(one, other) + torchs_kl(other, one), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_symmetric_kl_of_close_predictions_keeps_its_digits(dtype: torch.dtype) -> None:
    one = logits(50, 5, 0).to(dtype)
    other = (one.float() + 1e-3 * logits(50, 5, 1).float()).to(dtype)
    exact = symmetric_kl(one.double(), other.double())
    found = symmetric_kl(one, other)
    assert found.dtype == torch.float32
    assert bool((found >= 0).all())
    torch.testing.assert_close(found.double(), exact, rtol=2e-2, atol=1e-12)


def test_symmetric_kl_of_certain_predictions_is_finite() -> None:
    one, other = torch.tensor([[1000.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 1000.0], [0.0, -1e4]])
    assert symmetric_kl(one, other).tolist() == [2000.0, 5000.0]


@pytest.mark.parametrize("apart", [symmetric_kl, symmetric_bernoulli, squared_difference])
def test_gradients_flow_into_both(apart: object) -> None:
    one, other = (logits(3, 4, seed).requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(apart, (one, other))


@pytest.mark.parametrize("apart", [symmetric_kl, symmetric_bernoulli, squared_difference])
def test_nothing_is_apart_from_itself(apart: object) -> None:
    one = logits(3, 4, 0).float()
    assert apart(one, one).tolist() == [0.0] * 3  # type: ignore[operator]


@given(labels=st.integers(1, 5), seed=st.integers(0, 100))
def test_a_label_is_a_distribution_over_two_classes(labels: int, seed: int) -> None:
    one, other = logits(2, labels, seed), logits(2, labels, seed + 1000)
    by_label = [
        symmetric_kl(
            torch.stack([torch.zeros_like(one[:, label]), one[:, label]], -1),
            torch.stack([torch.zeros_like(other[:, label]), other[:, label]], -1),
        )
        for label in range(labels)
    ]
    torch.testing.assert_close(symmetric_bernoulli(one, other), torch.stack(by_label).mean(0))


def test_squared_difference_is_that_of_torch() -> None:
    one, other = logits(4, 3, 0), logits(4, 3, 1)
    torch.testing.assert_close(squared_difference(one, other).mean(), F.mse_loss(one, other))


def test_each_problem_has_its_own() -> None:
    found = [divergence(problem) for problem in ("classification", "causal-lm", "multi-label", "regression")]
    assert found == [symmetric_kl, symmetric_kl, symmetric_bernoulli, squared_difference]


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(MethodError, match="r3f .* does not know what this model predicts; use a model"):
        check_divergence("r3f", "unknown", regression=True)
    with pytest.raises(MethodError, match="r3f compares distributions .* a regression has none; use smart"):
        check_divergence("r3f", "regression", regression=False)
    check_divergence("smart", "regression", regression=True)
    for problem in ("classification", "causal-lm", "multi-label"):
        check_divergence("r3f", problem, regression=False)
