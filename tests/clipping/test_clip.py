from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import _models
from tests._tiers import few
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from evenkeel import ClipResult, Components, clip_grad_norm_, components
from evenkeel.clipping import grad_norms
from evenkeel.errors import ComponentError, GradientError, ThresholdError

pytestmark = pytest.mark.usefixtures("either_way")

EPSILON = 1e-6
INF, NAN = math.inf, math.nan
# Rounding once to the gradient's own precision, and the norm and the coefficient in float32.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


class Bag(nn.Module):
    """A model that is nothing but parameters with given gradients: ``p0``, ``p1``, ..."""

    def __init__(self, *grads: Tensor | None) -> None:
        super().__init__()
        for index, grad in enumerate(grads):
            parameter = nn.Parameter(torch.zeros(2) if grad is None else torch.zeros_like(grad))
            parameter.grad = grad
            self.register_parameter(f"p{index}", parameter)

    @property
    def grads(self) -> list[Tensor | None]:
        return [parameter.grad for parameter in self.parameters()]


def bits(tensor: Tensor | None) -> bytes | None:
    return None if tensor is None else tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()


def slow_norm(grad: Tensor, norm_type: float) -> float:
    """One entry after the other, in Python's double precision."""
    entries = [abs(float(entry)) for entry in grad.flatten()]
    if norm_type == INF:
        return max(entries, default=0.0)
    return math.fsum(entry**norm_type for entry in entries) ** (1 / norm_type)


def slow_clip(groups: list[list[Tensor]], max_norm: float, norm_type: float) -> tuple[list[float], list[list[Tensor]]]:
    """The paper's formula, in float64: every group is one component."""
    norms = [slow_norm(torch.cat([grad.double().flatten() for grad in group]), norm_type) for group in groups]
    clipped = [
        [grad.double() * min(1.0, max_norm / (norm + EPSILON)) for grad in group]
        for group, norm in zip(groups, norms, strict=True)
    ]
    return norms, clipped


SHAPES = st.lists(st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1, max_size=6)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
NORM_TYPES = st.sampled_from([1, 1.0, 2.0, 3.0, 0.5, INF])
THRESHOLDS = st.sampled_from([1e-3, 0.05, 1.0, 5, 1e5, INF])
SCALES = st.sampled_from([1e-3, 1.0, 1e3])
PARTITIONS = st.sampled_from(["tensor", "global", "pairs"])


@st.composite
def gradients(draw: st.DrawFn) -> list[Tensor]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return [
        (torch.randn(shape, generator=generator, dtype=torch.float64) * draw(SCALES)).to(draw(DTYPES))
        for shape in draw(SHAPES)
    ]


@given(gradients(), THRESHOLDS, NORM_TYPES, PARTITIONS)
def test_it_is_the_papers_formula(grads: list[Tensor], max_norm: float, norm_type: float, by: str) -> None:
    model = Bag(*[grad.clone() for grad in grads])
    size = {"tensor": 1, "global": len(grads), "pairs": 2}[by]
    parts = components(model, lambda part: int(part.name[1:]) // size)
    groups = [grads[start : start + size] for start in range(0, len(grads), size)]
    norms, expected = slow_clip(groups, max_norm, norm_type)

    result = clip_grad_norm_(parts, max_norm, norm_type)

    precise = any(grad.dtype == torch.float64 for grad in grads)
    assert result.norms.dtype == (torch.float64 if precise else torch.float32)
    torch.testing.assert_close(
        result.norms.double(), torch.tensor(norms, dtype=torch.float64), rtol=1e-12 if precise else 1e-5, atol=0
    )
    after = iter(model.grads)
    for group, wanted in zip(groups, expected, strict=True):
        for before, want in zip(group, wanted, strict=True):
            got = next(after)
            assert got is not None
            assert got.dtype == before.dtype
            if max_norm == INF:
                assert bits(got) == bits(before)
            tolerance = TOLERANCE[before.dtype] if precise or before.dtype != torch.float32 else 1e-5
            tiny = torch.finfo(before.dtype).tiny  # below it, precision is lost whatever one does
            torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tiny)


@given(gradients(), st.sampled_from([1e-2, 1.0, 1e4]), st.sampled_from([1.0, 2.0, 3.0, INF]))
def test_global_is_torchs_own_clipping(grads: list[Tensor], max_norm: float, norm_type: float) -> None:
    grads = [grad.float() for grad in grads]
    ours, theirs = Bag(*[grad.clone() for grad in grads]), Bag(*[grad.clone() for grad in grads])
    result = clip_grad_norm_(components(ours, by="global"), max_norm, norm_type)
    total = nn.utils.clip_grad_norm_(theirs.parameters(), max_norm, norm_type)
    torch.testing.assert_close(result.norms[0], total, rtol=1e-6, atol=0)
    torch.testing.assert_close(result.total_norm, total, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.grads, theirs.grads, rtol=1e-6, atol=1e-12)


def test_a_tensor_clipped_alone_is_torchs_clipping_of_that_tensor() -> None:
    ours, theirs = _models.bert(), _models.bert()
    for model in (ours, theirs):
        _models.backward(model)
    result = clip_grad_norm_(ours, max_norm=0.05)
    clipped = [nn.utils.clip_grad_norm_([parameter], 0.05) for parameter in theirs.parameters()]
    torch.testing.assert_close(result.norms, torch.stack(clipped), rtol=1e-6, atol=0)
    assert 0 < int((result.coefficients < 1).sum()) < len(result.norms)  # both cases are there
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-6, atol=0)


def test_norms_are_taken_in_float32_whatever_the_gradients_are() -> None:
    half = Bag(torch.full((1000,), 100.0, dtype=torch.float16))  # squares overflow in float16
    assert clip_grad_norm_(half, 1.0).norms.item() == pytest.approx(math.sqrt(1000) * 100)
    brain = Bag(torch.ones(1001, dtype=torch.bfloat16))  # 1001 is no number of bfloat16
    assert clip_grad_norm_(brain, INF, norm_type=1.0).norms.item() == 1001.0


def test_merged_norms_neither_overflow_nor_vanish() -> None:
    large, small = Bag(*[torch.full((1,), 1e12)] * 2), Bag(*[torch.full((1,), 1e-12)] * 2)
    for norm_type, norm in ((1.0, 2.0), (3.0, 2 ** (1 / 3)), (INF, 1.0)):
        for model, unit in ((large, 1e12), (small, 1e-12)):
            merged = grad_norms(components(model, by="global"), norm_type)
            assert merged.item() == pytest.approx(norm * unit, rel=1e-5)


# --- what must not change


@pytest.mark.parametrize("by", ["tensor", "global", "layer"])
@pytest.mark.parametrize("norm_type", [1.0, 2.0, INF])
@pytest.mark.parametrize(
    "values",
    [[3.0, -4.0], [0.0, -0.0], [INF, 1.0], [INF, -INF], [1e-45, -1e-40], [3e38, 3e38]],
    ids=str,
)
def test_an_infinite_threshold_leaves_every_bit(values: list[float], norm_type: float, by: Any) -> None:
    model = Bag(torch.tensor(values), torch.tensor([1.0, 2.0]))
    before = [bits(grad) for grad in model.grads]
    result = clip_grad_norm_(components(model, by=by), INF, norm_type)
    assert [bits(grad) for grad in model.grads] == before
    assert set(result.coefficients.tolist()) == {1.0}


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_component_within_its_threshold_keeps_every_bit(dtype: torch.dtype) -> None:
    grads = [torch.randn(7, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in range(3)]
    model = Bag(*[grad.clone() for grad in grads])
    result = clip_grad_norm_(model, 1e3)
    assert [bits(grad) for grad in model.grads] == [bits(grad) for grad in grads]
    assert result.coefficients.tolist() == [1.0] * 3


def test_zero_gradients_stay_zero() -> None:
    model = Bag(torch.zeros(3), torch.ones(3))
    result = clip_grad_norm_(model, 1e-9)
    assert model.grads[0] is not None
    assert model.grads[0].tolist() == [0.0] * 3
    assert result.coefficients[0].item() == pytest.approx(1e-9 / EPSILON)


def test_clipping_is_in_place() -> None:
    model = Bag(torch.ones(3))
    before = model.grads[0]
    assert before is not None
    clip_grad_norm_(model, 0.1)
    assert model.grads[0] is before
    assert not before.requires_grad


# --- not a number


def grouped(model: nn.Module, by: str) -> Components:
    return (
        components(model, by="tensor") if by == "tensor" else components(model, lambda part: part.name in ("p0", "p1"))
    )


@pytest.mark.parametrize("norm_type", [1.0, 2.0, INF])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("by", ["tensor", "merged"])
def test_what_is_not_finite_stays_in_its_component(by: str, bad: float, norm_type: float) -> None:
    model = Bag(torch.tensor([1.0, 2.0]), torch.tensor([bad, 2.0]), torch.tensor([3.0, 4.0]), torch.tensor([0.0]))
    alone = Bag(torch.tensor([3.0, 4.0]), torch.tensor([0.0]))
    result = clip_grad_norm_(grouped(model, by), 1.0, norm_type)
    clip_grad_norm_(alone if by == "tensor" else components(alone, by="global"), 1.0, norm_type)
    assert bits(model.grads[2]) == bits(alone.grads[0])
    assert bits(model.grads[3]) == bits(alone.grads[1])
    assert model.grads[1] is not None
    assert torch.isnan(model.grads[1]).any()
    finite = result.norms.isfinite().tolist()
    assert finite == ([True, False, True, True] if by == "tensor" else [False, True])


@pytest.mark.parametrize("norm_type", [2.0, INF])
def test_nan_stays_in_its_layer(norm_type: float) -> None:
    model = _models.bert(3)
    _models.backward(model)
    query = model.bert.encoder.layer[1].attention.self.query.bias
    assert query.grad is not None
    query.grad[0] = NAN
    result = clip_grad_norm_(components(model, by="layer"), 0.1, norm_type)
    assert {name for name, norm in result.to_dict().items() if math.isnan(norm)} == {"layer.1"}
    for part in components(model):
        grad = part.parameters[0].grad
        assert grad is not None
        assert bool(grad.isnan().any()) == (part.layer == 1)


@pytest.mark.parametrize("max_norm", [0.5, INF])
@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("by", ["tensor", "merged"])
def test_zero_silences_the_whole_component_and_no_other(by: str, bad: float, max_norm: float) -> None:
    model = Bag(torch.tensor([1.0, 2.0]), torch.tensor([bad, 2.0]), torch.tensor([3.0, 4.0]))
    alone = Bag(torch.tensor([3.0, 4.0]))
    result = clip_grad_norm_(grouped(model, by), max_norm, nonfinite="zero")
    clip_grad_norm_(alone, max_norm)
    assert model.grads[1] is not None
    assert model.grads[1].tolist() == [0.0, 0.0]
    assert model.grads[0] is not None
    assert (model.grads[0] == 0).all() == (by == "merged")
    assert bits(model.grads[2]) == bits(alone.grads[0])
    assert (result.coefficients == 0).tolist() == ([False, True, False] if by == "tensor" else [True, False])
    assert not result.norms[1 if by == "tensor" else 0].isfinite()  # the record says what was seen


def test_error_names_the_culprits_and_changes_nothing() -> None:
    grads = [torch.tensor([value, 2.0]) for value in (1.0, NAN, 3.0, INF)]
    model = Bag(*[grad.clone() for grad in grads])
    with pytest.raises(GradientError, match="not finite in 2 of 4 components: p1, p3;"):
        clip_grad_norm_(model, 0.1, nonfinite="error")
    assert [bits(grad) for grad in model.grads] == [bits(grad) for grad in grads]


def test_error_names_five_at_most() -> None:
    with pytest.raises(GradientError, match="p0, p1, p2, p3, p4 and 3 more;"):
        clip_grad_norm_(Bag(*[torch.tensor([NAN])] * 8), 0.1, nonfinite="error")


def test_error_clips_where_all_is_finite() -> None:
    model, plain = Bag(torch.tensor([3.0, 4.0])), Bag(torch.tensor([3.0, 4.0]))
    clip_grad_norm_(model, 1.0, nonfinite="error")
    clip_grad_norm_(plain, 1.0)
    assert bits(model.grads[0]) == bits(plain.grads[0])


# --- missing gradients, results


@pytest.mark.parametrize("norm_type", [1.0, 2.0, INF])
def test_a_missing_gradient_has_norm_zero_and_stays_missing(norm_type: float) -> None:
    model = Bag(None, torch.tensor([3.0, 4.0]), None, torch.tensor([6.0, 8.0]), None)
    result = clip_grad_norm_(model, 1.0, norm_type)
    first, second = slow_norm(torch.tensor([3.0, 4.0]), norm_type), slow_norm(torch.tensor([6.0, 8.0]), norm_type)
    assert result.norms.tolist() == pytest.approx([0.0, first, 0.0, second, 0.0])
    assert [grad is None for grad in model.grads] == [True, False, True, False, True]
    assert model.grads[3] is not None
    assert slow_norm(model.grads[3], norm_type) == pytest.approx(1.0, rel=1e-5)


def test_the_result_tells_norms_before_clipping() -> None:
    model = Bag(torch.tensor([3.0, 4.0]), torch.tensor([0.1, 0.0]))
    result = clip_grad_norm_(components(model), {"p0": 2, "*": 0.5})
    assert isinstance(result, ClipResult)
    assert result.names == ("p0", "p1")
    assert result.to_dict() == pytest.approx({"p0": 5.0, "p1": 0.1})
    assert result.thresholds.tolist() == [2.0, 0.5]
    assert result.coefficients.tolist() == pytest.approx([2 / (5 + EPSILON), 1.0])
    assert result.norm_type == 2.0
    for tensor in (result.norms, result.thresholds, result.coefficients):
        assert tensor.shape == (2,)
        assert tensor.dtype == torch.float32


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, INF])
def test_the_total_norm_is_that_of_one_long_gradient(norm_type: float) -> None:
    grads = [torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in ((3, 2), (4,), ())]
    result = clip_grad_norm_(Bag(*[grad.clone() for grad in grads]), 0.1, norm_type)
    everything = torch.cat([grad.flatten() for grad in grads])
    assert result.total_norm.shape == ()
    torch.testing.assert_close(result.total_norm, torch.linalg.vector_norm(everything, norm_type))


@given(gradients(), NORM_TYPES)
def test_grad_norms_are_what_clipping_sees(grads: list[Tensor], norm_type: float) -> None:
    model = Bag(*[grad.clone() for grad in grads])
    norms = grad_norms(components(model), norm_type)
    assert [bits(grad) for grad in model.grads] == [bits(grad) for grad in grads]
    assert torch.equal(norms, clip_grad_norm_(model, 1.0, norm_type).norms)


def test_a_selection_is_clipped_and_the_rest_left_alone() -> None:
    model = _models.bert()
    _models.backward(model)
    before = {name: bits(parameter.grad) for name, parameter in model.named_parameters()}
    chosen = components(model).select("query")
    clip_grad_norm_(chosen, 1e-6)
    changed = {name for name, parameter in model.named_parameters() if bits(parameter.grad) != before[name]}
    assert changed == {part.name for part in chosen}


# --- nothing waits for the device


class NoSynchronisation(TorchDispatchMode):
    """Fails where a value, a size or a truth would have to come back from the device."""

    WAITS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket).rpartition(".")[2]
        assert name not in self.WAITS, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def test_the_watch_sees_a_synchronisation() -> None:
    for wait in (Tensor.item, bool, Tensor.nonzero):
        with pytest.raises(AssertionError, match="waits for the device"), NoSynchronisation():
            wait(torch.ones(1))


@pytest.mark.parametrize("by", few(["tensor", "module", "role", "layer", "global"], {"tensor", "role", "global"}))
@pytest.mark.parametrize("nonfinite", ["propagate", "zero"])
@pytest.mark.parametrize("max_norm", [0.05, INF, {"query": 0.1, "*": 1.0}])
@pytest.mark.parametrize("missing", [pytest.param(False, marks=pytest.mark.slow), True])
def test_clipping_waits_for_nothing(by: Any, nonfinite: Any, max_norm: Any, missing: bool) -> None:
    if isinstance(max_norm, dict) and by not in ("tensor", "role"):
        max_norm = 0.2
    model = _models.bert()
    _models.backward(model)
    if missing:
        model.classifier.bias.grad = None
    parts = components(model, by)
    with NoSynchronisation():
        result = clip_grad_norm_(parts, max_norm, nonfinite=nonfinite)
        assert result.total_norm.shape == ()
        grad_norms(parts, INF)


@pytest.mark.parametrize("by", ["tensor", "layer", "global"])
@pytest.mark.parametrize("norm_type", [2.0, INF])
def test_clipping_needs_no_value_at_all(by: Any, norm_type: float) -> None:
    """Meta tensors have a device and no values: whatever looks at one fails."""
    with torch.device("meta"):
        model = _models.bert()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model.classifier.bias.grad = None
    for nonfinite in ("propagate", "zero"):
        result = clip_grad_norm_(components(model, by), 0.05, norm_type, nonfinite)
        for tensor in (result.norms, result.thresholds, result.coefficients, result.total_norm):
            assert tensor.is_meta
    with pytest.raises(NotImplementedError):
        result.to_dict()  # the only one that looks
    with pytest.raises(NotImplementedError):
        clip_grad_norm_(components(model, by), 0.05, norm_type, "error")


# --- what is refused


@pytest.mark.parametrize("max_norm", [0, -0.05, NAN, True, "0.05", None, {}, {"nobody": 1.0, "*": 1.0}])
def test_a_bad_threshold_is_refused_before_anything_changes(max_norm: Any) -> None:
    model = Bag(torch.tensor([3.0, 4.0]))
    with pytest.raises(ThresholdError):
        clip_grad_norm_(model, max_norm)
    assert model.grads[0] is not None
    assert model.grads[0].tolist() == [3.0, 4.0]


@pytest.mark.parametrize("norm_type", [0, -2.0, NAN, "inf", None, True])
@pytest.mark.parametrize("call", [grad_norms, lambda parts, norm_type: clip_grad_norm_(parts, 1.0, norm_type)])
def test_a_bad_norm_type_is_refused(call: Callable[[Components, Any], Any], norm_type: Any) -> None:
    with pytest.raises(GradientError, match="norm_type must be a positive number"):
        call(components(Bag(torch.ones(2))), norm_type)


def test_an_unknown_answer_to_nonfinite_is_refused() -> None:
    with pytest.raises(GradientError, match="'propagate', 'zero' or 'error', but got 'ignore'"):
        clip_grad_norm_(Bag(torch.ones(2)), 1.0, nonfinite="ignore")  # type: ignore[arg-type]


def test_no_gradient_at_all_is_refused() -> None:
    for call in (grad_norms, lambda parts: clip_grad_norm_(parts, 1.0)):
        with pytest.raises(GradientError, match="none of the 2 components has a gradient; clip after"):
            call(components(Bag(None, None)))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda: [torch.ones(2)], "tensors that are no parameters, gradients by the look of them"),
        (lambda: [nn.Parameter(torch.ones(2))], "a list that holds a Parameter"),
        (lambda: nn.Linear(2, 1).parameters(), "a generator that holds a Parameter"),
        (lambda: torch.ones(2), r"a tensor of shape \(2,\)"),
        (lambda: 0.05, "a float"),
    ],
)
def test_tensors_are_no_components(given: Callable[[], Any], said: str) -> None:
    with pytest.raises(ComponentError, match=rf"clipping was given {said}; .* evenkeel\.components\(model\)"):
        clip_grad_norm_(given(), 1.0)


@pytest.mark.parametrize("given", [iter(()), [], {}])
def test_what_is_empty_is_refused(given: Any) -> None:
    with pytest.raises(ComponentError, match=r"is empty; .*pass evenkeel\.components\(model\)"):
        clip_grad_norm_(given, 1.0)


def test_a_selection_that_fits_nothing_is_refused() -> None:
    with pytest.raises(ComponentError, match="no components to clip: the selection fits nothing"):
        clip_grad_norm_(components(Bag(torch.ones(2))).select("query"), 1.0)


def test_components_may_come_from_any_iterable() -> None:
    model = Bag(torch.ones(4), torch.ones(4))
    clip_grad_norm_((part for part in components(model) if part.name == "p1"), 1.0)
    assert [grad is not None and round(grad.norm().item(), 3) for grad in model.grads] == [2.0, 1.0]
