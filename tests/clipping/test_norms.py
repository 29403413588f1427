from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evenkeel.clipping._norms import component_norms, tensor_norms

pytestmark = pytest.mark.usefixtures("either_way")

ORDERS = [0.5, 1.0, 2.0, 3.0, math.inf]
LONG = 70_001  # more than what is summed at once, and no multiple of a row


def slow_norm(tensor: Tensor, order: float) -> float:
    """The definition, in float64."""
    entries = tensor.double().abs().flatten()
    return entries.max().item() if order == math.inf else (entries**order).sum().item() ** (1 / order)


def drawn(shape: tuple[int, ...], *, seed: int = 0, scale: float = 1e-3) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LAYOUTS = {
    "contiguous": lambda: drawn((LONG,)),
    "columns": lambda: drawn((300, 900))[:, 300:600],
    "interleaved heads": lambda: drawn((960, 300)).unfold(0, 20, 60),
    "transposed": lambda: drawn((310, 290)).t(),
    "every second": lambda: drawn((400, 400))[:, ::2],
    "expanded": lambda: drawn((1, 300)).expand(300, 300),
    "one column": lambda: drawn((LONG, 3))[:, 1:2],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_norms_of_long_tensors_are_those_of_float64(layout: str, order: float) -> None:
    tensor = LAYOUTS[layout]()
    (norm,) = tensor_norms([tensor], order).tolist()
    assert norm == pytest.approx(slow_norm(tensor, order), rel=1e-5)


def test_the_norm_of_the_word_embeddings_of_bert_large_is_exact() -> None:
    """torch's own is off by 1.7e-3 on a CPU; were it not, this file could use it."""
    tensor = drawn((30522, 1024))
    exact = tensor.double().norm().item()
    assert tensor_norms([tensor], 2.0).item() == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    tensor = drawn((LONG,), scale=1.0).to(dtype)
    norms = tensor_norms([tensor, tensor[:10]], 2.0)
    assert norms.dtype == torch.float32
    assert norms.tolist() == pytest.approx([slow_norm(tensor, 2), slow_norm(tensor[:10], 2)], rel=1e-5)


def test_one_float64_gradient_makes_all_norms_float64() -> None:
    norms = tensor_norms([drawn((LONG,)), drawn((3,)).double()], 2.0)
    assert norms.dtype == torch.float64


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1023, 1024, LONG - 1])
def test_what_is_not_finite_is_seen_wherever_it_stands(value: float, place: int) -> None:
    tensor = drawn((LONG,))
    tensor[place] = value
    (norm,) = tensor_norms([tensor], 2.0).tolist()
    assert math.isnan(norm) if math.isnan(value) else norm == math.inf


def test_rows_of_rows_are_summed_again() -> None:
    """As many rows as would be too long for one sum themselves."""
    tensor = torch.full((1,), 0.5).expand(70_000 * 1024)[: 66_000 * 1024]
    assert tensor_norms([tensor], 2.0).item() == pytest.approx(0.5 * math.sqrt(tensor.numel()), rel=1e-5)


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.sampled_from([1, 7, 1024, 65_536, 65_537, LONG]), min_size=1, max_size=6),
    order=st.sampled_from(ORDERS),
    data=st.data(),
)
def test_components_of_several_tensors(sizes: list[int], order: float, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 4), label="components")
    owners = data.draw(st.lists(st.integers(0, count - 1), min_size=len(sizes), max_size=len(sizes)), label="owners")
    grads = [drawn((size,), seed=seed) for seed, size in enumerate(sizes)]
    norms = component_norms(grads, owners, count=count, norm_type=order)
    expected = [
        slow_norm(torch.cat(own), order) if own else 0.0
        for own in ([grad for grad, owner in zip(grads, owners, strict=True) if owner == part] for part in range(count))
    ]
    assert norms.tolist() == pytest.approx(expected, rel=1e-5)
