"""AGC by row, against a twin of plain loops in double precision."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.clipping._bag import INF, NAN, Bag, bits, drawn, fused
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from evenkeel import clip_grad_norm_, clip_grads, components
from evenkeel.clipping._units import norms_of
from evenkeel.clipping.thresholds import WeightRelative
from evenkeel.errors import GradientError

EPSILON = 1e-6


def slow_norm(entries: list[float], order: float) -> float:
    top = max(entries, default=0.0)
    return top if order == INF else math.fsum(entry**order for entry in entries) ** (1 / order)


def rows_of(tensor: Tensor, leading: int) -> list[list[float]]:
    """Absolute values, row by row; a vector is one row."""
    if tensor.dim() < 2:
        return [[abs(entry) for entry in tensor.flatten().tolist()]]
    rows = tensor.reshape(math.prod(tensor.shape[:leading]), -1) if tensor.numel() else tensor.reshape(0, 1)
    return [[abs(entry) for entry in row] for row in rows.tolist()]


def slow_rows(
    grads: list[Tensor], weights: list[Tensor], *, ratio: float, floor: float, order: float, leading: int = 1
) -> tuple[float, float, float, list[Tensor]]:
    """The paper's formula for one component: norm, norm allowed, norm left, gradients."""
    norms: list[float] = []
    limits: list[float] = []
    left: list[float] = []
    clipped: list[Tensor] = []
    for grad, weight in zip(grads, weights, strict=True):
        factors = []
        for entries, own in zip(rows_of(grad, leading), rows_of(weight, leading), strict=True):
            norm, limit = slow_norm(entries, order), ratio * max(slow_norm(own, order), floor)
            factor = min(1.0, limit / (norm + EPSILON))
            norms.append(norm)
            limits.append(limit)
            left.append(norm * factor)
            factors.append(factor)
        shape = (1,) if grad.dim() < 2 else (*grad.shape[:leading], *(1,) * (grad.dim() - leading))
        clipped.append((grad.double() * torch.tensor(factors, dtype=torch.float64).reshape(shape)).reshape(grad.shape))
    return slow_norm(norms, order), slow_norm(limits, order), slow_norm(left, order), clipped


def with_weights(model: nn.Module, *, scale: float = 1.0) -> nn.Module:
    """Weights that differ from row to row, some of them at zero."""
    for seed, parameter in enumerate(model.parameters()):
        values = drawn(*parameter.shape, seed=100 + seed, scale=scale, dtype=parameter.dtype)
        parameter.data.copy_(values * (drawn(*parameter.shape[:1], *(1,) * (parameter.dim() - 1), seed=9) > 0))
    return model


SHAPES = st.lists(st.lists(st.integers(1, 4), max_size=4).map(tuple), min_size=1, max_size=4)


@given(
    SHAPES,
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    st.sampled_from([0.5, 1.0, 2.0, 3.7, INF]),
    st.sampled_from([0.01, 0.3, 10.0]),
    st.sampled_from([1e-3, 0.5]),
    st.sampled_from(["tensor", "global"]),
    st.sampled_from(["propagate", "zero", "error"]),
)
def test_it_is_the_papers_formula(
    shapes: list[tuple[int, ...]],
    dtype: torch.dtype,
    order: float,
    ratio: float,
    floor: float,
    by: Any,
    nonfinite: Any,
) -> None:
    grads = [drawn(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes)]
    model = with_weights(Bag(*[grad.clone() for grad in grads]))
    result = clip_grad_norm_(components(model, by), WeightRelative(ratio, floor=floor, per="row"), order, nonfinite)
    weights = [parameter.detach() for parameter in model.parameters()]
    groups = [range(len(grads))] if by == "global" else [[index] for index in range(len(grads))]
    precise = dtype == torch.float64
    for component, group in enumerate(groups):
        norm, allowed, left, clipped = slow_rows(
            [grads[index] for index in group],
            [weights[index] for index in group],
            ratio=ratio,
            floor=floor,
            order=order,
        )
        close = {"rel": 1e-12 if precise else 1e-5}
        assert result.norms[component].item() == pytest.approx(norm, **close)
        assert result.thresholds[component].item() == pytest.approx(allowed, **close)
        assert result.coefficients[component].item() == pytest.approx(left / norm, **close)
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
        for index, wanted in zip(group, clipped, strict=True):
            got = list(model.parameters())[index].grad
            assert got is not None
            torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=torch.finfo(dtype).tiny)


class Experts(nn.Module):
    """Three experts of two outputs each, and a convolution that is as deep but has no experts."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ParameterDict({"up_proj": nn.Parameter(drawn(3, 2, 5))})
        self.convolution = nn.Conv1d(2, 4, 3, bias=False)


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("by", ["tensor", "role", "global"])
def test_a_row_of_stacked_experts_is_one_output_of_one_expert(cut: bool, by: Any) -> None:
    model = Experts()
    rule = "expert: expert_in" if cut else "expert_in"
    parts = components(model, by, roles={"ParameterDict": {"up_proj": rule}})
    for seed, parameter in enumerate(model.parameters()):
        parameter.grad = drawn(*parameter.shape, seed=seed)
    wanted = [
        slow_rows([own.grad], [own.detach()], ratio=0.1, floor=1e-3, order=2.0, leading=leading)[3][0]
        for own, leading in zip(model.parameters(), (2, 1), strict=True)
        if own.grad is not None
    ]
    clip_grad_norm_(parts, WeightRelative(0.1, per="row"))
    for own, clipped in zip(model.parameters(), wanted, strict=True):
        assert own.grad is not None
        torch.testing.assert_close(own.grad.double(), clipped, rtol=1e-5, atol=0)
    if by == "tensor":
        assert len(parts) == (4 if cut else 2)


def test_a_cut_part_has_rows_of_its_own() -> None:
    model, parts = fused()
    for seed, parameter in enumerate(model.parameters()):
        parameter.grad = drawn(*parameter.shape, seed=seed)
    wanted: dict[str, Tensor] = {}
    for part in parts:
        (piece,) = part.pieces
        own = piece.tensor()
        assert own.grad is not None
        (grad,), (weight,) = piece.of(own.grad.clone()), piece.of(own.detach())
        norm, allowed, left, (wanted[part.name],) = slow_rows([grad], [weight], ratio=0.1, floor=1e-3, order=2.0)
    result = clip_grad_norm_(parts, WeightRelative(0.1, per="row"))
    for part in parts:
        (got,) = part.gradients()
        torch.testing.assert_close(got.double(), wanted[part.name], rtol=1e-5, atol=0)
    assert result.norms[-1].item() == pytest.approx(norm, rel=1e-6)
    assert result.thresholds[-1].item() == pytest.approx(allowed, rel=1e-6)
    assert result.coefficients[-1].item() == pytest.approx(left / norm, rel=1e-6)


class Heads(nn.Module):
    """Two heads, each with its query's, key's and value's rows below one another."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Parameter(drawn(12, 5))
        self.beside = nn.Parameter(drawn(5, 12))


def test_rows_of_interleaved_heads_are_the_parameters_rows() -> None:
    from evenkeel.partition import Components, Span

    model = Heads()
    plain = components(model)
    cut = []
    for part, dim in zip(plain, (0, 1), strict=True):
        for index, name in enumerate(("query", "key", "value")):
            span = Span(dim=dim, start=2 * index, length=2, stride=6, count=2)
            (piece,) = part.pieces
            cut.append(_replaced(part, name, _replaced(piece, None, None, spans=(span,), cut="heads")))
    parts = Components(cut)
    for seed, parameter in enumerate(model.parameters()):
        parameter.grad = drawn(*parameter.shape, seed=seed)
    assert model.qkv.grad is not None
    rows = slow_rows([model.qkv.grad.clone()], [model.qkv.detach()], ratio=0.1, floor=1e-3, order=2.0)[3][0]
    query = [0, 1, 6, 7]
    assert model.beside.grad is not None
    columns = slow_rows(
        [model.beside.grad[:, query].clone()], [model.beside.detach()[:, query]], ratio=0.1, floor=1e-3, order=2.0
    )[3][0]
    clip_grad_norm_(parts, WeightRelative(0.1, per="row"))
    torch.testing.assert_close(model.qkv.grad.double(), rows, rtol=1e-5, atol=0)
    torch.testing.assert_close(model.beside.grad[:, query].double(), columns, rtol=1e-5, atol=0)


def _replaced(thing: Any, name: str | None, piece: Any, **changes: Any) -> Any:
    from dataclasses import replace

    return replace(thing, **changes) if name is None else replace(thing, name=f"{thing.name}[{name}]", pieces=(piece,))


# --- what must not change


def test_rows_within_their_limit_keep_every_bit() -> None:
    grad = torch.tensor([[3.0, 4.0], [0.3, -0.4], [0.0, -0.0]])
    model = Bag(grad.clone())
    model.p0.data.fill_(1.0)  # rows of norm 1.414
    result = clip_grad_norm_(model, WeightRelative(1.0, per="row"))
    got = model.grads[0]
    assert got is not None
    assert bits(got[1:]) == bits(grad[1:])
    assert got[0].norm().item() == pytest.approx(math.sqrt(2))
    assert result.thresholds.item() == pytest.approx(math.sqrt(6))
    unclipped = clip_grad_norm_(model, WeightRelative(1e3, per="row"))
    assert unclipped.coefficients.tolist() == [1.0]


@pytest.mark.parametrize("by", ["tensor", "module"])
def test_what_is_named_keeps_every_bit_and_the_rest_is_clipped_as_without_it(by: Any) -> None:
    def made() -> nn.Module:
        model = with_weights(nn.ModuleDict({"body": nn.Linear(3, 2), "classifier": nn.Linear(3, 2)}))
        for seed, parameter in enumerate(model.parameters()):
            parameter.grad = drawn(*parameter.shape, seed=seed)
        return model

    left, clipped, plain = made(), made(), made()
    result = clip_grad_norm_(components(left, by), WeightRelative(0.1, per="row", unclipped=("head",)))
    everything = clip_grad_norm_(components(clipped, by), WeightRelative(0.1, per="row"))
    for (name, got), all_clipped, untouched in zip(
        left.named_parameters(), clipped.parameters(), plain.parameters(), strict=True
    ):
        wanted = untouched if name.startswith("classifier") else all_clipped
        assert bits(got.grad) == bits(wanted.grad)
        assert bits(all_clipped.grad) != bits(untouched.grad)
    half = len(result.names) // 2
    assert result.norms.tolist() == everything.norms.tolist()
    assert result.thresholds[:half].tolist() == everything.thresholds[:half].tolist()
    assert result.thresholds[half:].tolist() == [INF] * half
    assert result.coefficients[half:].tolist() == [1.0] * half


def test_what_is_left_alone_is_not_spoilt_by_infinity_and_can_be_silenced() -> None:
    grad = torch.tensor([[INF, 1.0], [6.0, 8.0]])
    rule = WeightRelative(0.1, per="row", unclipped=("p0",))
    model = Bag(grad.clone(), torch.ones(2, 2))
    clip_grad_norm_(model, rule)
    assert bits(model.grads[0]) == bits(grad)
    model = Bag(grad.clone(), torch.ones(2, 2))
    clip_grad_norm_(model, rule, nonfinite="zero")
    assert model.grads[0] is not None
    assert not model.grads[0].any()


def test_the_derivative_of_what_is_left_alone_is_that_of_the_gradient() -> None:
    grads = {name: drawn(2, 2, seed=seed).requires_grad_() for seed, name in enumerate(("p0", "p1"))}
    model = with_weights(Bag(torch.ones(2, 2), torch.ones(2, 2)))
    clipped, _ = clip_grads(grads, model, WeightRelative(0.1, per="row", unclipped=("p0",)))
    (slope,) = torch.autograd.grad(clipped["p0"].sum(), grads["p0"])
    assert slope.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_weights_of_zero_move_within_the_floor() -> None:
    model = Bag(torch.ones(3, 4))
    model.p0.data.zero_()
    result = clip_grad_norm_(model, WeightRelative(0.1, floor=0.5, per="row"))
    grad = model.grads[0]
    assert grad is not None
    assert grad.norm(dim=1).tolist() == pytest.approx([0.05] * 3)
    assert result.thresholds.item() == pytest.approx(0.05 * math.sqrt(3))


def test_missing_gradients_have_norm_zero_and_stay_missing() -> None:
    model = Bag(None, torch.full((2, 2), 5.0))
    result = clip_grad_norm_(model, WeightRelative(0.1, per="row"))
    assert model.grads[0] is None
    assert result.norms.tolist() == pytest.approx([0.0, 10.0])
    assert result.coefficients[0].item() == 1.0
    with pytest.raises(GradientError, match="none of the 1 components has a gradient"):
        clip_grad_norm_(Bag(None), WeightRelative(per="row"))


# --- not a number


@pytest.mark.parametrize("bad", [NAN, INF])
def test_what_is_not_finite_stays_in_its_row(bad: float) -> None:
    grad = torch.tensor([[3.0, 4.0], [bad, 1.0], [6.0, 8.0]])
    model, alone = Bag(grad.clone(), torch.ones(2, 2)), Bag(grad[[0, 2]].clone(), torch.ones(2, 2))
    for one in (model, alone):
        for parameter in one.parameters():
            parameter.data.fill_(1.0)
    result = clip_grad_norm_(model, WeightRelative(0.1, per="row"))
    clip_grad_norm_(alone, WeightRelative(0.1, per="row"))
    got, wanted = model.grads[0], alone.grads[0]
    assert got is not None
    assert wanted is not None
    assert bits(got[[0, 2]]) == bits(wanted)
    assert bool(got[1].isnan().any())
    assert bits(model.grads[1]) == bits(alone.grads[1])
    coefficient = result.coefficients[0].item()
    assert math.isnan(coefficient) if math.isnan(bad) else coefficient == 0.0


@pytest.mark.parametrize("bad", [NAN, INF])
def test_zero_silences_the_whole_component(bad: float) -> None:
    model = Bag(torch.tensor([[3.0, 4.0], [bad, 1.0]]), torch.ones(2, 2))
    result = clip_grad_norm_(model, WeightRelative(0.1, per="row"), nonfinite="zero")
    first, second = model.grads
    assert first is not None
    assert second is not None
    assert first.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert second.isfinite().all()
    assert (result.coefficients == 0).tolist() == [True, False]
    assert not result.norms[0].isfinite()


def test_error_names_the_component_and_changes_nothing() -> None:
    grads = [torch.tensor([[3.0, 4.0], [NAN, 1.0]]), torch.full((2, 2), 5.0)]
    model = Bag(*[grad.clone() for grad in grads])
    with pytest.raises(GradientError, match="not finite in 1 of 2 components: p0;"):
        clip_grad_norm_(model, WeightRelative(0.1, per="row"), nonfinite="error")
    assert [bits(grad) for grad in model.grads] == [bits(grad) for grad in grads]


# --- kinds of gradients


@pytest.mark.parametrize("coalesced", [True, False])
@pytest.mark.parametrize("nonfinite", ["propagate", "zero"])
def test_sparse_gradients_are_clipped_as_dense_ones(coalesced: bool, nonfinite: Any) -> None:
    indices, values = torch.tensor([[1, 3, 1]]), torch.tensor([[3.0, 0.0], [0.0, 0.2], [0.0, 4.0]])
    sparse = torch.sparse_coo_tensor(indices, values, (5, 2), check_invariants=True)
    model, dense = Bag(sparse.coalesce() if coalesced else sparse), Bag(sparse.to_dense())
    for one in (model, dense):
        one.p0.data.copy_(drawn(5, 2))
    results = [clip_grad_norm_(one, WeightRelative(0.3, per="row"), nonfinite=nonfinite) for one in (model, dense)]
    for name in ("norms", "thresholds", "coefficients"):
        torch.testing.assert_close(getattr(results[0], name), getattr(results[1], name))
    assert model.grads[0] is not None
    assert model.grads[0].layout is torch.sparse_coo
    torch.testing.assert_close(model.grads[0].to_dense(), dense.grads[0])


def test_sparse_gradients_without_rows_are_refused() -> None:
    sparse = torch.eye(3).to_sparse()
    with pytest.raises(GradientError, match=r"rows of 'p0' cannot be clipped: .*sparse_coo.*per='component'"):
        clip_grad_norm_(Bag(sparse), WeightRelative(per="row"))


def test_complex_rows_count_by_their_absolute_values() -> None:
    grad = torch.complex(drawn(3, 4, seed=1), drawn(3, 4, seed=2))
    model = Bag(grad.clone())
    model.p0.data.copy_(torch.complex(drawn(3, 4, seed=3), drawn(3, 4, seed=4)))
    _, _, _, (size,) = slow_rows([grad.abs()], [model.p0.detach().abs()], ratio=0.1, floor=1e-3, order=3.0)
    clip_grad_norm_(model, WeightRelative(0.1, per="row"), 3.0)
    got = model.grads[0]
    assert got is not None
    torch.testing.assert_close(got.abs().double(), size, rtol=1e-5, atol=0)
    torch.testing.assert_close(got.angle(), grad.angle())


@pytest.mark.parametrize("value", [1e-30, 1e25])
def test_extreme_entries_neither_overflow_nor_vanish(value: float) -> None:
    model = Bag(torch.full((2, 3), value))
    model.p0.data.fill_(1.0)
    result = clip_grad_norm_(model, WeightRelative(0.1, per="row"))
    limit = 0.1 * math.sqrt(3)
    assert result.coefficients.item() == pytest.approx(min(1.0, limit / (value * math.sqrt(3))), rel=1e-5)
    if value > 1:
        assert result.norms.item() == pytest.approx(value * math.sqrt(6), rel=1e-5)


def test_long_rows_are_summed_exactly() -> None:
    tensor = drawn(2, 3_000_000)
    norms = norms_of(tensor, (1,), 2.0)
    exact = tensor.double().norm(dim=1, keepdim=True)
    assert norms.dtype == torch.float32
    torch.testing.assert_close(norms.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,), ()])
@pytest.mark.filterwarnings("ignore:.*have no entries:UserWarning")
def test_empty_parameters_have_no_rows(shape: tuple[int, ...]) -> None:
    model = Bag(torch.ones(shape), torch.ones(2, 2))
    result = clip_grad_norm_(model, WeightRelative(0.1, per="row"))
    assert result.norms.tolist() == pytest.approx([float(shape == ()), 2.0])


# --- nothing waits for the device


@pytest.mark.parametrize("by", ["tensor", "global"])
@pytest.mark.parametrize("nonfinite", ["propagate", "zero"])
def test_clipping_rows_needs_no_value_at_all(by: Any, nonfinite: Any) -> None:
    """Meta tensors have a device and no values: whatever looks at one fails."""
    model = Bag(torch.ones(3, 4, device="meta"), None, torch.ones(4, device="meta"), torch.ones((), device="meta"))
    model.p1 = nn.Parameter(torch.ones(2, 3, device="meta"))
    result = clip_grad_norm_(components(model, by), WeightRelative(0.1, per="row"), nonfinite=nonfinite)
    for tensor in (result.norms, result.thresholds, result.coefficients, result.total_norm):
        assert tensor.is_meta


# --- sharded


def sharded(dim: int) -> nn.Module:
    mesh = init_device_mesh("cpu", (1,))
    model = nn.Linear(4, 6)
    for parameter in (model.weight, model.bias):
        parameter.grad = drawn(*parameter.shape, seed=5)
    other = nn.Linear(4, 6)
    for name, parameter in model.named_parameters():
        place = [Shard(min(dim, parameter.dim() - 1))]
        spread = nn.Parameter(distribute_tensor(parameter.detach(), mesh, place))
        assert parameter.grad is not None
        spread.grad = distribute_tensor(parameter.grad, mesh, place)
        setattr(other, name, spread)
    return other


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("dim", [0, 1])
def test_a_mesh_of_one_rank_splits_nothing(dim: int) -> None:
    model, plain = sharded(dim), nn.Linear(4, 6)
    for own, parameter in zip(plain.parameters(), model.parameters(), strict=True):
        assert isinstance(parameter, DTensor)
        assert isinstance(parameter.grad, DTensor)
        own.data, own.grad = parameter.full_tensor().detach().clone(), parameter.grad.full_tensor().clone()
    ours, theirs = (clip_grad_norm_(one, WeightRelative(0.01, per="row")) for one in (model, plain))
    torch.testing.assert_close(ours.norms, theirs.norms)
    torch.testing.assert_close(ours.thresholds, theirs.thresholds)
    for own, parameter in zip(plain.parameters(), model.parameters(), strict=True):
        assert isinstance(parameter.grad, DTensor)
        torch.testing.assert_close(parameter.grad.full_tensor(), own.grad)


@pytest.mark.parametrize(
    ("weight", "grad", "norm_type", "dtype"),
    [
        (0.05, 1e3, 40.0, torch.float32),
        (1e-3, 1e-5, 12.0, torch.float32),
        (1.0, 1e-25, 2.0, torch.float32),
        (1.0, 1e6, 64.0, torch.float64),
    ],
)
def test_no_power_of_a_row_is_lost(weight: float, grad: float, norm_type: float, dtype: torch.dtype) -> None:
    model = Bag(torch.full((3, 8), grad, dtype=dtype))
    with torch.no_grad():
        next(model.parameters()).fill_(weight)
    result = clip_grad_norm_(model, WeightRelative(1e-4, per="row"), norm_type)
    rows, whole = 8 ** (1 / norm_type), 24 ** (1 / norm_type)
    assert result.norms.item() == pytest.approx(grad * whole, rel=1e-5)
    coefficient = min(1.0, 1e-4 * weight * rows / (grad * rows + 1e-6))
    assert model.grads[0] is not None
    assert model.grads[0][0, 0].item() == pytest.approx(grad * coefficient, rel=1e-5)
