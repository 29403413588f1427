from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.clipping._bag import INF, NAN, ROLES, Bag, Fused, bits, drawn, fused, slow_norm
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from evenkeel import clip_grad_norm_, components
from evenkeel.clipping._functional import clip_grads
from evenkeel.clipping.thresholds import Budget, Ema, Grouped, Percentile, Threshold, WeightRelative
from evenkeel.errors import ComponentError, GradientError, ThresholdError

NORM_TYPES = [0.5, 1.0, 2.0, 3.7, INF]
Grads = dict[str, Tensor]


def with_gradients(model: nn.Module) -> Grads:
    """Gradients by name, which the parameters have too."""
    for seed, parameter in enumerate(model.parameters()):
        parameter.grad = drawn(*parameter.shape, seed=seed, scale=0.1 * 3.0**seed)
    return {name: own.grad.clone() for name, own in model.named_parameters() if own.grad is not None}


def same(ours: Grads, model: nn.Module, rtol: float = 2e-6) -> None:
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(ours[name], parameter.grad, rtol=rtol, atol=1e-12)


THRESHOLDS = {
    "number": lambda: 0.7,
    "infinity": lambda: INF,
    "mapping": lambda: {"query": 0.1, "key": INF, "*": 1.0},
    "weights": lambda: WeightRelative(0.2),
    "rows": lambda: WeightRelative(0.2, per="row"),
    "budget": lambda: Budget(1.5),
    "running": lambda: Percentile(50),
    "together": lambda: Grouped(Percentile(50), by="global"),
}


@pytest.mark.parametrize(
    ("by", "threshold"),
    [(by, name) for by in ("tensor", "role", "global") for name in THRESHOLDS if (by, name) != ("global", "mapping")],
)
@pytest.mark.parametrize(("nonfinite", "norm_type"), [("propagate", 2.0), ("zero", INF), ("error", 1.0)])
def test_it_is_the_in_place_function_without_its_effects(
    by: str, nonfinite: Any, threshold: str, norm_type: float
) -> None:
    model, parts = fused(by)
    grads = with_gradients(model)
    before = {name: bits(tensor) for name, tensor in grads.items()}

    clipped, result = clip_grads(grads, parts, THRESHOLDS[threshold](), norm_type, nonfinite)

    assert {name: bits(tensor) for name, tensor in grads.items()} == before
    assert {name: bits(parameter.grad) for name, parameter in model.named_parameters()} == before
    assert list(clipped) == list(grads)
    theirs = clip_grad_norm_(parts, THRESHOLDS[threshold](), norm_type, nonfinite)
    same(clipped, model)
    for name in ("norms", "thresholds", "coefficients", "total_norm"):
        torch.testing.assert_close(getattr(result, name), getattr(theirs, name), rtol=2e-6, atol=0)
    assert result.names == theirs.names
    assert result.norm_type == theirs.norm_type


@given(
    st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=5),
    st.sampled_from(NORM_TYPES),
    st.sampled_from([1e-3, 1.0, INF]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    st.sampled_from([1e-18, 1.0, 1e18]),
)
def test_it_is_the_papers_formula(
    shapes: list[tuple[int, ...]], norm_type: float, max_norm: float, dtype: torch.dtype, scale: float
) -> None:
    scale = 1.0 if dtype == torch.float16 else scale
    grads = {f"p{i}": drawn(*shape, seed=i, scale=scale, dtype=dtype) for i, shape in enumerate(shapes)}
    clipped, result = clip_grads(grads, Bag(*grads.values()), max_norm, norm_type)
    for index, (name, before) in enumerate(grads.items()):
        norm = slow_norm(before, norm_type)
        assert result.norms[index].item() == pytest.approx(norm, rel=2e-6)
        coefficient = min(1.0, max_norm / (norm + 1e-6))
        tolerance = {torch.float64: 1e-12, torch.float32: 3e-6}.get(dtype, 1e-2)
        wanted = before.double() * coefficient
        torch.testing.assert_close(clipped[name].double(), wanted, rtol=tolerance, atol=torch.finfo(dtype).tiny)
        assert clipped[name].dtype == dtype
        if coefficient == 1.0:
            assert bits(clipped[name]) == bits(before)


@pytest.mark.parametrize("value", [1e-30, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("norm_type", [*NORM_TYPES, 50.0])
@pytest.mark.parametrize("by", ["tensor", "global"])
def test_extremes_neither_overflow_nor_vanish(value: float, norm_type: float, by: Any) -> None:
    grads = {"p0": torch.full((3,), value), "p1": torch.full((2,), value)}
    parts = components(Bag(*grads.values()), by)
    norms = clip_grads(grads, parts, 1.0, norm_type)[1].norms
    wanted = [5] if by == "global" else [3, 2]
    exact = [value * (1 if norm_type == INF else number ** (1 / norm_type)) for number in wanted]
    assert norms.tolist() == pytest.approx(exact, rel=2e-6)


def test_long_gradients_are_summed_exactly() -> None:
    tensor = drawn(70_001, 20)
    norms = clip_grads({"p0": tensor, "p1": tensor.t()}, Bag(tensor, tensor.t()), 1.0)[1].norms
    assert norms.tolist() == pytest.approx([tensor.double().norm().item()] * 2, rel=1e-6)


# --- torch.func


def loss(model: nn.Module, params: Grads, sample: Tensor) -> Tensor:
    found: Tensor = functional_call(model, params, (sample,))
    return found.sum()


@pytest.mark.parametrize("by", ["tensor", "role", "global"])
@pytest.mark.parametrize(
    ("threshold", "nonfinite"),
    [
        ("number", "propagate"),
        ("number", "zero"),
        ("infinity", "propagate"),
        ("weights", "propagate"),
        ("rows", "zero"),
        ("budget", "propagate"),
    ],
)
def test_inside_vmap_every_sample_is_clipped_on_its_own(by: str, threshold: str, nonfinite: Any) -> None:
    model, parts = fused(by)
    params = {name: parameter.detach() for name, parameter in model.named_parameters()}
    samples = drawn(3, 4)
    samples[1] *= 1e-3

    def clipped(sample: Tensor) -> tuple[Grads, Tensor, Tensor]:
        grads = grad(lambda params: loss(model, params, sample))(params)
        clipped, result = clip_grads(grads, parts, THRESHOLDS[threshold](), nonfinite=nonfinite)
        return clipped, result.norms, result.coefficients

    each, norms, coefficients = vmap(clipped)(samples)
    for index, sample in enumerate(samples):
        model.zero_grad()
        loss(model, dict(model.named_parameters()), sample).backward()
        theirs = clip_grad_norm_(parts, THRESHOLDS[threshold]())
        torch.testing.assert_close(norms[index], theirs.norms, rtol=1e-5, atol=0)
        torch.testing.assert_close(coefficients[index], theirs.coefficients, rtol=1e-5, atol=0)
        same({name: tensor[index] for name, tensor in each.items()}, model, rtol=1e-5)


@pytest.mark.parametrize("threshold", ["number", "rows"])
@pytest.mark.parametrize("nonfinite", ["propagate", "zero"])
def test_inside_vmap_some_gradients_may_be_the_same_for_all_samples(threshold: str, nonfinite: Any) -> None:
    model, parts = fused("global")
    grads = with_gradients(model)

    def clipped(sample: Tensor) -> Grads:
        return clip_grads({**grads, "plain": sample}, parts, THRESHOLDS[threshold](), nonfinite=nonfinite)[0]

    samples = drawn(3, *model.plain.shape)
    each = vmap(clipped)(samples)
    for index, sample in enumerate(samples):
        alone = clipped(sample)
        torch.testing.assert_close({name: tensor[index] for name, tensor in each.items()}, alone, rtol=1e-6, atol=0)


def test_inside_vmap_a_sample_that_is_not_finite_is_silenced_alone() -> None:
    model, samples = Bag(torch.ones(2)), torch.tensor([[3.0, 4.0], [NAN, 1.0], [0.0, INF]])
    each = vmap(lambda sample: clip_grads({"p0": sample}, model, 1.0, nonfinite="zero")[0]["p0"])(samples)
    torch.testing.assert_close(each, torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, 0.0]]), rtol=1e-5, atol=0)


def test_inside_vmap_nobody_can_ask_for_an_error_or_for_a_threshold_that_learns() -> None:
    model = Bag(torch.ones(2))
    with pytest.raises(GradientError, match="nonfinite='error' must look at the norms, which torch.func.vmap"):
        vmap(lambda sample: clip_grads({"p0": sample}, model, 1.0, nonfinite="error")[0])(torch.ones(3, 2))
    for threshold in (Ema(), Percentile(10)):
        with pytest.raises(ThresholdError, match="inside torch.func.vmap and grad no threshold can learn"):
            vmap(lambda sample, by=threshold: clip_grads({"p0": sample}, model, by)[0])(torch.ones(3, 2))


@pytest.mark.parametrize(
    ("by", "threshold", "norm_type"),
    [
        ("tensor", "number", 2.0),
        ("role", "number", 3.7),
        ("global", "number", 1.0),
        ("global", "number", INF),
        ("tensor", "mapping", 2.0),
        ("role", "weights", 2.0),
        ("global", "budget", 2.0),
        ("tensor", "rows", 2.0),
        ("role", "rows", INF),
    ],
)
def test_it_can_be_differentiated(by: str, threshold: str, norm_type: float) -> None:
    model = Fused().double()
    parts = components(model, by, roles={"Fused": {"qkv": "query | key | value"}})  # type: ignore[arg-type]
    names = [name for name, _ in model.named_parameters()]
    before = tuple(drawn(*own.shape, seed=3, dtype=torch.float64).requires_grad_() for own in model.parameters())

    def clipped(*grads: Tensor) -> tuple[Tensor, ...]:
        found, result = clip_grads(dict(zip(names, grads, strict=True)), parts, max_norm, norm_type)
        return (*found.values(), result.norms)

    max_norm = THRESHOLDS[threshold]()
    assert torch.autograd.gradcheck(clipped, before, fast_mode=True)
    total = grad(lambda *grads: sum(tensor.square().sum() for tensor in clipped(*grads)))(*before)
    reference = torch.autograd.grad(sum(tensor.square().sum() for tensor in clipped(*before)), before[0])[0]
    torch.testing.assert_close(total, reference)


def test_a_gradient_of_zeros_can_be_differentiated_through() -> None:
    model = Bag(torch.ones(2), torch.ones(2))
    for by in ("tensor", "global"):
        parts = components(model, by)  # type: ignore[arg-type]
        derivative = grad(lambda g, parts=parts: clip_grads({"p0": g, "p1": g * 0}, parts, 1.0)[0]["p0"].sum())
        assert derivative(torch.zeros(2)).isfinite().all()


def test_nothing_of_a_transform_is_left_behind() -> None:
    """What is remembered with the components must serve the next caller."""
    model, parts = fused()
    grads = with_gradients(model)
    for max_norm in (0.5, {"query": 0.1, "*": 1.0}, Budget(1.0)):
        grad(lambda g, by=max_norm: clip_grads({**grads, "plain": g}, parts, by)[0]["plain"].sum())(grads["plain"])
        vmap(lambda g, by=max_norm: clip_grads({**grads, "plain": g}, parts, by)[0]["plain"])(drawn(3, 2, 4))
        clipped, _ = clip_grads(grads, parts, max_norm)
        clip_grad_norm_(parts, max_norm)
        same(clipped, model)
        with_gradients(model)


@pytest.mark.slow
@pytest.mark.parametrize("threshold", ["number", "mapping", "rows"])
def test_it_compiles_as_one_graph(threshold: str) -> None:
    model, parts = fused()
    grads = with_gradients(model)
    max_norm = THRESHOLDS[threshold]()

    def clipped(grads: Grads) -> tuple[Grads, Tensor, Tensor]:
        found, result = clip_grads(grads, parts, max_norm, nonfinite="zero")
        return found, result.norms, result.coefficients

    torch._dynamo.reset()
    compiled = torch.compile(clipped, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(grads), clipped(grads), rtol=2e-6, atol=0)


@pytest.mark.parametrize("threshold", ["number", "mapping", "weights", "rows", "budget"])
@pytest.mark.parametrize("nonfinite", ["propagate", "zero"])
def test_it_needs_no_value_at_all(threshold: str, nonfinite: Any) -> None:
    """Meta tensors have a device and no values: whatever looks at one fails."""
    with torch.device("meta"):
        model = Fused()
    parts = components(model, roles=ROLES)  # type: ignore[arg-type]
    grads = {name: torch.empty_like(parameter) for name, parameter in model.named_parameters()}
    clipped, result = clip_grads(grads, parts, THRESHOLDS[threshold](), nonfinite=nonfinite)
    assert all(tensor.is_meta for tensor in (*clipped.values(), result.norms, result.coefficients))


# --- names


def test_what_is_left_out_has_no_gradient() -> None:
    grads = [torch.tensor([3.0, 4.0]), torch.tensor([6.0, 8.0])]
    clipped, result = clip_grads({"p1": grads[1]}, Bag(*grads), 1.0)
    assert list(clipped) == ["p1"]
    assert result.norms.tolist() == [0.0, 10.0]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2, bias=False)
        self.second = nn.Linear(2, 2, bias=False)
        self.second.weight = self.first.weight


def test_a_tied_parameter_goes_by_each_of_its_names_but_once() -> None:
    model, tensor = Tied(), torch.full((2, 2), 2.0)
    parts = components(model)
    for source in (parts, model, components(model, "global")):
        clipped, result = clip_grads({"first.weight": tensor}, source, 1.0)
        assert result.norms.tolist() == [4.0]
        assert clipped["first.weight"].norm().item() == pytest.approx(1.0)
        clipped, result = clip_grads({"second.weight": tensor}, source, 1.0)
        assert result.norms.tolist() == [4.0]
        assert list(clipped) == ["second.weight"]
    with pytest.raises(GradientError, match="'first.weight' and 'second.weight' are names of one tied parameter"):
        clip_grads({"first.weight": tensor, "second.weight": tensor}, parts, 1.0)


def test_a_wrapped_model_goes_by_its_own_names() -> None:
    model = torch.compile(nn.Linear(2, 1), backend="eager")
    grads = {name: torch.ones_like(own) for name, own in model.named_parameters()}
    clipped, result = clip_grads(grads, model, 0.1)
    assert list(clipped) == list(grads) == ["_orig_mod.weight", "_orig_mod.bias"]
    assert result.names == ("weight", "bias")


def test_unknown_names_are_refused() -> None:
    model = nn.Linear(2, 1)
    with pytest.raises(GradientError, match=r"unknown parameter 'wieght': did you mean 'weight'\?.*leave out .*frozen"):
        clip_grads({"wieght": torch.ones(1, 2)}, model, 1.0)
    model.bias.requires_grad_(False)
    with pytest.raises(GradientError, match="unknown parameter 'bias'"):
        clip_grads({"weight": torch.ones(1, 2), "bias": torch.ones(1)}, components(model), 1.0)


@pytest.mark.parametrize(
    ("grads", "said"),
    [
        ({}, "an empty mapping"),
        ([torch.ones(2)], "a list"),
        ({"p0": torch.ones(3)}, r"has the shape \(3,\) and the parameter \(2,\)"),
        ({"p0": torch.ones(5, 2)}, r"has the shape \(5, 2\) .* use torch.func.vmap for a batch"),
        ({"p0": None}, "is a NoneType and no tensor; leave out"),
        ({"p0": torch.eye(2).to_sparse()}, r"has the shape \(2, 2\)"),
    ],
)
def test_what_fits_no_parameter_is_refused(grads: Any, said: str) -> None:
    with pytest.raises(GradientError, match=said):
        clip_grads(grads, Bag(torch.ones(2)), 1.0)


def test_bad_arguments_are_refused() -> None:
    grads, model = {"p0": torch.ones(2)}, Bag(torch.ones(2))
    with pytest.raises(ThresholdError):
        clip_grads(grads, model, -1.0)
    with pytest.raises(GradientError, match="norm_type must be"):
        clip_grads(grads, model, 1.0, -1.0)
    with pytest.raises(GradientError, match="'propagate', 'zero' or 'error'"):
        clip_grads(grads, model, 1.0, nonfinite="ignore")  # type: ignore[arg-type]
    with pytest.raises(ComponentError):
        clip_grads(grads, [torch.ones(2)], 1.0)  # type: ignore[list-item]
    with pytest.raises(GradientError, match="not finite in 1 of 1 components: p0;"):
        clip_grads({"p0": torch.tensor([NAN, 1.0])}, model, 1.0, nonfinite="error")


# --- kinds of gradients


@pytest.mark.parametrize("coalesced", [True, False])
@pytest.mark.parametrize("nonfinite", ["propagate", "zero"])
def test_sparse_gradients_stay_sparse(coalesced: bool, nonfinite: Any) -> None:
    embedding = nn.Embedding(5, 2, sparse=True)
    indices, values = torch.tensor([[1, 3, 1]]), torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 4.0]])
    sparse = torch.sparse_coo_tensor(indices, values, (5, 2), check_invariants=True)
    sparse = sparse.coalesce() if coalesced else sparse
    clipped, result = clip_grads({"weight": sparse}, embedding, 1.0, nonfinite=nonfinite)
    dense, wanted = clip_grads({"weight": sparse.to_dense()}, embedding, 1.0)
    assert clipped["weight"].layout is torch.sparse_coo
    torch.testing.assert_close(result.norms, wanted.norms)
    torch.testing.assert_close(clipped["weight"].to_dense(), dense["weight"])
    with pytest.raises(GradientError, match="rows are not at hand"):
        clip_grads({"weight": sparse}, embedding, WeightRelative(per="row"))


@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_complex_gradients_count_by_their_absolute_values(norm_type: float) -> None:
    tensor = torch.complex(drawn(5, seed=1), drawn(5, seed=2))
    for layout in (tensor, tensor.conj()):
        clipped, result = clip_grads({"p0": layout}, Bag(tensor), 0.1, norm_type)
        norm = slow_norm(tensor, norm_type)
        assert result.norms.item() == pytest.approx(norm, rel=1e-5)
        torch.testing.assert_close(clipped["p0"], layout * (0.1 / (norm + 1e-6)), rtol=1e-5, atol=0)


def test_views_expanded_and_transposed_gradients_are_left_as_they_are() -> None:
    base = drawn(6, 4)
    shapes = {"p0": base.t(), "p1": base[:, ::2], "p2": base[:1].expand(3, 4), "p3": torch.tensor(5.0).expand(2, 2)}
    before = bits(base)
    clipped, result = clip_grads(shapes, Bag(*(tensor.clone() for tensor in shapes.values())), 0.1)
    assert bits(base) == before
    for name, norm in result.to_dict().items():
        assert norm == pytest.approx(slow_norm(shapes[name], 2.0), rel=1e-6)
        torch.testing.assert_close(clipped[name], shapes[name] * (0.1 / (norm + 1e-6)))


def test_weights_may_be_given_by_name() -> None:
    model = nn.Linear(2, 1)
    grads = {"weight": torch.full((1, 2), 5.0), "bias": torch.ones(1)}
    weights = {"weight": torch.tensor([[3.0, 4.0]])}
    for per in ("component", "row"):
        threshold = WeightRelative(0.1, per=per)  # type: ignore[arg-type]
        _, result = clip_grads(grads, model, threshold, weights=weights)
        own = 0.1 * max(1e-3, math.fabs(model.bias.item()))
        assert result.thresholds.tolist() == pytest.approx([0.5, own])
    with pytest.raises(GradientError, match="the weight of 'bias' has the shape"):
        clip_grads(grads, model, WeightRelative(), weights={"bias": torch.ones(2)})


def test_a_running_threshold_learns_outside_of_transforms() -> None:
    model, threshold = Bag(torch.ones(2)), Percentile(50)
    assert isinstance(threshold, Threshold)
    for value in (1.0, 3.0):
        clip_grads({"p0": torch.full((1, 2), value)[0].requires_grad_()}, model, threshold)
    (_, result) = clip_grads({"p0": torch.full((2,), 2.0)}, model, threshold)
    assert result.thresholds.item() == pytest.approx(math.sqrt(8.0))
    assert not result.thresholds.requires_grad


def test_complex_gradients_within_their_threshold_keep_every_bit() -> None:
    grad = torch.tensor([complex(INF, 1), complex(1, -0.0), 2 + 1j])
    kept, _ = clip_grads({"p0": grad}, Bag(grad), INF)
    assert bits(torch.view_as_real(kept["p0"])) == bits(torch.view_as_real(grad))


def test_an_error_comes_before_a_threshold_learns() -> None:
    threshold = Ema(warmup=0)
    model = Bag(torch.ones(2), torch.ones(2))
    with pytest.raises(GradientError, match="not finite"):
        clip_grads({"p0": torch.ones(2), "p1": torch.tensor([1.0, NAN])}, model, threshold, nonfinite="error")
    assert threshold.state_dict()["seen"].sum() == 0
