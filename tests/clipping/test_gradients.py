"""Gradients of every kind and layout are clipped as their dense, contiguous, real twins are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.clipping._bag import EPSILON, INF, NAN, Bag, bits, drawn, fused, slow_norm
from torch import Tensor, nn

from evenkeel import clip_grad_norm_, components
from evenkeel.clipping import _local, cpu, grad_norms
from evenkeel.clipping._gradients import Gradients, collect
from evenkeel.clipping._plan import plan
from evenkeel.clipping.thresholds import Budget
from evenkeel.errors import GradientError

NORM_TYPES = [0.5, 1.0, 2.0, 3.7, INF]
MODES = ["propagate", "zero", "error"]

# --- layouts

LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "transposed": lambda: drawn(6, 4).t(),
    "columns": lambda: drawn(6, 12)[:, 4:8],
    "every second row": lambda: drawn(12, 4)[::2],
    "every second entry": lambda: drawn(6, 8)[:, ::2],
    "interleaved": lambda: drawn(12, 4).unfold(0, 2, 6),
    "channels last": lambda: drawn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "permuted": lambda: drawn(2, 3, 4).permute(2, 0, 1),
    "one value": lambda: torch.tensor(0.5).expand(3, 4),
    "one row": lambda: drawn(1, 4).expand(3, 4),
    "one column": lambda: drawn(3, 1).expand(3, 4),
    "in the midst": lambda: drawn(40)[7:19].view(3, 4),
    "long columns": lambda: drawn(300, 900)[:, 300:600],
    "long and expanded": lambda: drawn(1, 300).expand(300, 300),
    "long and transposed": lambda: drawn(310, 290).t(),
    "a number": lambda: torch.tensor(3.0),
    "a lone row, expanded": lambda: drawn(1, 4).expand(1, 4),
}


@pytest.mark.parametrize("nonfinite", MODES)
@pytest.mark.parametrize("by", ["tensor", "global"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_do_not_matter(layout: str, by: Any, nonfinite: Any) -> None:
    grad = LAYOUTS[layout]()
    model, twin = Bag(grad, drawn(3)), Bag(grad.detach().clone(memory_format=torch.contiguous_format), drawn(3))
    ours, theirs = (clip_grad_norm_(components(one, by), 0.3, nonfinite=nonfinite) for one in (model, twin))
    torch.testing.assert_close(ours.norms, theirs.norms, rtol=1e-6, atol=0)
    assert ours.coefficients[0] < 1
    torch.testing.assert_close(model.grads, twin.grads, rtol=1e-6, atol=0)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name.startswith(("columns", "every", "in the midst"))])
def test_what_lies_beside_a_view_is_left_alone(layout: str) -> None:
    grad = LAYOUTS[layout]()
    base = grad._base
    assert base is not None
    before = base.clone()
    mine = torch.zeros_like(base, dtype=torch.bool).as_strided(grad.shape, grad.stride(), grad.storage_offset())
    mine.fill_(True)
    assert mine._base is not None
    clip_grad_norm_(Bag(grad), 0.3)
    assert torch.equal(base[~mine._base], before[~mine._base])
    assert not torch.equal(base[mine._base], before[mine._base])


def test_gradients_that_lie_in_one_buffer_are_clipped_one_by_one() -> None:
    """As DDP's ``gradient_as_bucket_view`` leaves them."""
    buffer = drawn(10)
    views = [buffer[:4], buffer[4:6], buffer[6:]]
    apart = Bag(*[view.clone() for view in views])
    clip_grad_norm_(Bag(*views), 0.1)
    clip_grad_norm_(apart, 0.1)
    assert bits(buffer) == bits(torch.cat([grad for grad in apart.grads if grad is not None]))


def test_an_expanded_gradient_is_replaced_by_one_of_its_own() -> None:
    row = drawn(1, 4)
    model = Bag(row.expand(3, 4))
    clip_grad_norm_(model, 0.1)
    assert model.grads[0] is not None
    assert model.grads[0].is_contiguous()
    assert model.grads[0].norm().item() == pytest.approx(0.1, rel=1e-4)
    torch.testing.assert_close(row, drawn(1, 4))


def test_a_gradient_of_sum_is_expanded_in_practice() -> None:
    model = nn.Linear(3, 2, bias=False)
    (model.weight * 1).sum().backward()
    (model.weight.sum() * 2).backward()
    clip_grad_norm_(model, 0.5)
    assert model.weight.grad is not None
    assert model.weight.grad.norm().item() == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("nonfinite", MODES)
def test_cut_components_are_clipped_in_their_parameters_gradient(nonfinite: Any) -> None:
    model, parts = fused()
    for seed, parameter in enumerate(model.parameters()):
        parameter.grad = drawn(*parameter.shape, seed=seed)
    grad = model.beside.grad
    assert grad is not None
    before = grad.clone()
    result = clip_grad_norm_(parts, {"key": 0.1, "*": INF}, nonfinite=nonfinite)
    assert model.beside.grad is grad
    norm = slow_norm(before[:, 2:4], 2.0)
    assert result.to_dict()["beside[key]"] == pytest.approx(norm, rel=1e-6)
    torch.testing.assert_close(grad[:, 2:4], before[:, 2:4] * (0.1 / (norm + EPSILON)))
    assert bits(grad[:, :2]) == bits(before[:, :2])
    assert bits(grad[:, 4:]) == bits(before[:, 4:])


# --- sparse


def sparse_coo(*, coalesced: bool, dtype: torch.dtype = torch.float32, bad: float = 3.0) -> Tensor:
    """Rows 1 and 3 of five; the first one in two summands."""
    values = torch.tensor([[bad, 0.0], [0.0, 2.0], [-1.0, 4.0]], dtype=dtype)
    found = torch.sparse_coo_tensor(torch.tensor([[1, 3, 1]]), values, (5, 2), check_invariants=True)
    return found.coalesce() if coalesced else found


@pytest.mark.parametrize("coalesced", [True, False])
@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("by", ["tensor", "global"])
@pytest.mark.parametrize("nonfinite", MODES)
def test_sparse_gradients_are_clipped_as_dense_ones(coalesced: bool, norm_type: float, by: Any, nonfinite: Any) -> None:
    sparse = sparse_coo(coalesced=coalesced)
    model, twin = Bag(sparse, drawn(3)), Bag(sparse.to_dense(), drawn(3))
    ours, theirs = (clip_grad_norm_(components(one, by), 0.5, norm_type, nonfinite) for one in (model, twin))
    torch.testing.assert_close(ours.norms, theirs.norms, rtol=1e-6, atol=0)
    assert model.grads[0] is sparse
    torch.testing.assert_close(sparse.to_dense(), twin.grads[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(model.grads[1], twin.grads[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("coalesced", [True, False])
def test_a_sparse_gradient_within_its_threshold_keeps_every_bit(coalesced: bool) -> None:
    sparse = sparse_coo(coalesced=coalesced)
    before = bits(sparse._values())
    clip_grad_norm_(Bag(sparse), 100.0)
    assert bits(sparse._values()) == before


@pytest.mark.parametrize("coalesced", [True, False])
@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_sparse_gradient_that_is_not_finite_becomes_zeros(coalesced: bool, bad: float) -> None:
    sparse = sparse_coo(coalesced=coalesced, bad=bad)
    result = clip_grad_norm_(Bag(sparse, torch.ones(2)), 1.0, nonfinite="zero")
    assert (sparse.to_dense() == 0).all()
    assert (result.coefficients == 0).tolist() == [True, False]


def test_an_embedding_of_torch_with_sparse_gradients() -> None:
    """torch's own clipping raises NotImplementedError here."""
    torch.manual_seed(0)
    sparse = nn.Embedding(10, 3, sparse=True)
    dense = nn.Embedding(10, 3)
    dense.load_state_dict(sparse.state_dict())
    for model in (sparse, dense):
        model(torch.tensor([1, 2, 1, 7])).square().sum().backward()
        clip_grad_norm_(model, 0.5)
    assert sparse.weight.grad is not None
    torch.testing.assert_close(sparse.weight.grad.to_dense(), dense.weight.grad)


def test_a_sparse_gradient_of_nothing_has_norm_zero() -> None:
    empty = torch.sparse_coo_tensor(
        torch.zeros(1, 0, dtype=torch.int64), torch.zeros(0, 2), (5, 2), check_invariants=True
    )
    for norm_type in NORM_TYPES:
        assert clip_grad_norm_(Bag(empty), 1.0, norm_type).norms.tolist() == [0.0]


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("layout", ["to_sparse_csr", "to_sparse_csc"])
def test_compressed_sparse_gradients(layout: str) -> None:
    dense = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    compressed = getattr(dense, layout)()
    model = nn.Module()
    model.weight = nn.Parameter(getattr(torch.ones(2, 2), layout)())  # torch wants gradients of the same kind
    model.weight.grad = compressed
    result = clip_grad_norm_(model, 1.0)
    assert result.norms.tolist() == [5.0]
    torch.testing.assert_close(compressed.to_dense(), dense * (1 / (5 + EPSILON)))


def test_a_sparse_gradient_of_a_cut_parameter_is_refused() -> None:
    model, parts = fused()
    model.qkv.grad = torch.ones_like(model.qkv).to_sparse()
    with pytest.raises(
        GradientError, match="gradient of 'qkv' is sparse, but 'query | key | value' cuts its parameter"
    ):
        clip_grad_norm_(parts, 1.0)
    clip_grad_norm_(components(model), 1.0)


# --- complex


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("conjugate", [False, True])
@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("nonfinite", MODES)
def test_complex_entries_count_by_their_absolute_values(
    dtype: torch.dtype, conjugate: bool, norm_type: float, nonfinite: Any
) -> None:
    plain = torch.complex(drawn(3, 4, seed=1), drawn(3, 4, seed=2)).to(dtype)
    grad = plain.clone().conj() if conjugate else plain.clone()
    wanted = grad.clone().resolve_conj()
    model = Bag(grad)
    model.p0.grad = grad
    result = clip_grad_norm_(model, 0.1, norm_type, nonfinite)
    norm = slow_norm(plain, norm_type)
    assert result.norms.item() == pytest.approx(norm, rel=1e-5)
    assert result.norms.dtype == (torch.float64 if dtype == torch.complex128 else torch.float32)
    assert model.grads[0] is grad
    torch.testing.assert_close(grad.resolve_conj(), wanted * (0.1 / (norm + EPSILON)), rtol=1e-5, atol=0)


def test_a_complex_gradient_that_is_not_finite_becomes_zeros() -> None:
    grad = torch.tensor([complex(1.0, NAN), complex(2.0, 3.0)])
    clip_grad_norm_(Bag(grad), 1.0, nonfinite="zero")
    assert grad.tolist() == [0j, 0j]


# --- several dtypes and devices in one model


@given(
    st.lists(
        st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]),
        min_size=2,
        max_size=5,
    ),
    st.sampled_from(["tensor", "global"]),
    st.sampled_from(NORM_TYPES),
    st.sampled_from(MODES),
)
def test_dtypes_may_be_mixed(dtypes: list[torch.dtype], by: Any, norm_type: float, nonfinite: Any) -> None:
    grads = [drawn(5, seed=seed).to(dtype) for seed, dtype in enumerate(dtypes)]
    model = Bag(*[grad.clone() for grad in grads])
    result = clip_grad_norm_(components(model, by), 0.1, norm_type, nonfinite)
    each = [slow_norm(grad, norm_type) for grad in grads]
    together = slow_norm(torch.tensor(each, dtype=torch.float64), norm_type)
    norms = [together] if by == "global" else each
    assert result.norms.tolist() == pytest.approx(norms, rel=1e-5)
    for got, grad, norm in zip(model.grads, grads, norms * len(grads), strict=False):
        assert got is not None
        assert got.dtype == grad.dtype
        wide = grad.to(torch.complex128) if grad.is_complex() else grad.double()
        wanted = (wide * (0.1 / (norm + EPSILON))).to(grad.dtype)
        tolerance = 1e-2 if grad.dtype in (torch.bfloat16, torch.float16) else 1e-5
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [3, 20_000])
@pytest.mark.parametrize("nonfinite", ["propagate", "error"])
def test_coefficients_are_not_rounded_to_the_gradients_dtype(dtype: torch.dtype, size: int, nonfinite: Any) -> None:
    """``torch._foreach_mul_`` rounds Python's numbers; in float16 every coefficient below 3e-8 would be 0."""
    grad = drawn(size, scale=100.0, dtype=dtype)
    model = Bag(grad.clone())
    coefficient = clip_grad_norm_(model, 0.77, nonfinite=nonfinite).coefficients.item()
    assert bits(model.grads[0]) == bits((grad.float() * coefficient).to(dtype))


def test_tensors_of_several_devices_are_put_together_on_the_first() -> None:
    """Meta stands for the second device: what is there has no values, and must touch nothing of the CPU's."""
    parts = components(Bag(torch.ones(2, device="meta"), torch.ones(2), torch.ones(2, device="meta")), "global")
    where = plan(parts, None)
    tensors = collect(where, 2.0)
    assert _local.local_norms(tensors.read, tensors.slots, where, 2.0).is_meta
    kept = tensors.write[1]
    one = torch.tensor([0.5])
    _local.scale_all(tensors, where, one, None)
    assert kept.tolist() == [0.5, 0.5]
    _local.scale_all(tensors, where, one, torch.tensor([True]))
    assert kept.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("by", ["tensor", "global"])
@pytest.mark.parametrize("nonfinite", ["zero", "error"])
def test_devices_are_joined_as_one(monkeypatch: pytest.MonkeyPatch, by: Any, norm_type: float, nonfinite: Any) -> None:
    """A stand-in for two devices: every second tensor goes as if it lay elsewhere."""

    def apart(tensors: Any, indices: Any) -> Any:
        return {place: (tensors[place::2], indices[place::2]) for place in (0, 1) if tensors[place::2]}

    def on_cpu(tensor: Tensor, *_: Any) -> Tensor:
        return tensor

    grads = [drawn(4, seed=seed) for seed in range(5)]
    model, twin = (Bag(*[grad.clone() for grad in grads]) for _ in range(2))
    threshold = Budget(0.5)  # the way that is not for the CPU alone
    theirs = clip_grad_norm_(components(twin, by), threshold, norm_type, nonfinite)
    monkeypatch.setattr(_local, "_by_device", lambda tensors, indices: _named(apart(tensors, indices)))
    ours = clip_grad_norm_(components(model, by), threshold, norm_type, nonfinite)
    torch.testing.assert_close(ours.norms, theirs.norms)
    torch.testing.assert_close(model.grads, twin.grads)


def _named(groups: dict[int, Any]) -> dict[torch.device, Any]:
    return {torch.device("cpu", place): group for place, group in groups.items()}


# --- missing, tied, misused


def test_a_component_of_which_a_part_is_missing_counts_the_rest() -> None:
    model = Bag(torch.tensor([3.0, 4.0]), None, torch.tensor([12.0]))
    result = clip_grad_norm_(components(model, "global"), 1.0)
    assert result.norms.tolist() == [13.0]
    assert model.grads[1] is None


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2, bias=False)
        self.second = nn.Linear(2, 2, bias=False)
        self.second.weight = self.first.weight


@pytest.mark.parametrize("by", ["tensor", "global", "module"])
def test_a_tied_parameter_is_counted_and_clipped_once(by: Any) -> None:
    model = Tied()
    model.first.weight.grad = torch.full((2, 2), 2.0)
    result = clip_grad_norm_(components(model, by), 1.0)
    assert result.norms.tolist() == [4.0]
    assert model.second.weight.grad is not None
    assert model.second.weight.grad.norm().item() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("call", [grad_norms, lambda model: clip_grad_norm_(model, 0.1)])
def test_a_gradient_made_in_inference_mode_is_refused(call: Callable[[Any], Any]) -> None:
    with torch.inference_mode():
        grad = torch.ones(2)
    model = Bag(torch.ones(2))
    model.p0.grad = grad
    with pytest.raises(GradientError, match="gradient of 'p0' was made under torch.inference_mode"):
        call(model)


def test_clipping_in_inference_mode_is_refused() -> None:
    model = Bag(torch.tensor([3.0, 4.0]))
    with pytest.raises(GradientError, match="called under torch.inference_mode"), torch.inference_mode():
        clip_grad_norm_(model, 1.0)
    assert model.grads[0] is not None
    assert model.grads[0].tolist() == [3.0, 4.0]


def test_reading_makes_no_copies_of_dense_gradients() -> None:
    model = Bag(drawn(3), drawn(4, 5))
    found = collect(plan(components(model), None), 2.0)
    assert isinstance(found, Gradients)
    assert found.read == found.write == model.grads
    assert all(read is write for read, write in zip(found.read, found.write, strict=True))
    assert math.prod(found.read[1].shape) == 20


@pytest.mark.parametrize("norm_type", [1.0, 2.0, INF])
def test_sparse_complex_gradients_are_clipped_as_dense_ones(norm_type: float) -> None:
    sparse = torch.sparse_coo_tensor([[0, 2, 0]], torch.tensor([3 + 4j, 1j, 1 - 1j]), (4,), check_invariants=True)
    model, twin = Bag(sparse), Bag(sparse.to_dense())
    for one in (model, twin):
        clip_grad_norm_(one, 0.1, norm_type)
    assert model.grads[0] is not None
    torch.testing.assert_close(model.grads[0].to_dense(), twin.grads[0], rtol=1e-6, atol=0)


def test_sparse_values_that_share_memory_are_clipped() -> None:
    model = Bag(torch.sparse_coo_tensor([[0, 1, 0]], torch.ones(1, 1).expand(3, 3), (5, 3), check_invariants=True))
    norm = clip_grad_norm_(model, 0.1).norms.item()
    assert norm == pytest.approx(math.sqrt(15))
    assert model.grads[0] is not None
    assert model.grads[0].to_dense().norm().item() == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize("kernels", [True, False])
def test_one_gradient_of_two_parameters_is_seen_and_scaled_twice(
    kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As autograd.grad returns it for a sum; torch's own clipping scales it as often."""
    monkeypatch.setattr(cpu, "available", lambda: kernels)
    grad = torch.full((4,), 4.0)
    model = Bag(grad, grad)
    assert clip_grad_norm_(model, 1.0).norms.tolist() == [8.0, 8.0]
    assert grad.norm().item() == pytest.approx(0.125, rel=1e-5)
