"""The multi-tensor update on the CPU: Triton interprets it, in a process of its own. Compiled for a GPU, too."""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.clipping.gpu import test_segments
from tests.clipping.gpu.test_segments import CPU, DTYPES, INF, NAN, SHAPES, bits, build
from torch import Tensor

from evenkeel.clipping.gpu import COLUMNS
from evenkeel.errors import OptimizerError
from evenkeel.optim.gpu import AdamWSegments, _segments

pytestmark = [pytest.mark.slow, pytest.mark.matrix]  # Triton's interpreter is slow, and a GPU is what these are for

interpreted = test_segments.interpreted  # a fixture

# What rounding may cost: relative, and in units of the largest entry where differences are taken. The interpreter cuts
# bfloat16 off where a GPU rounds it.
TOLERANCE = {"float64": 1e-14, "float32": 1e-6, "float16": 2**-10, "bfloat16": 2**-7}
SETTINGS: dict[str, float] = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1, "eps": 1e-8}

Spec = tuple[str, str, int]  # of SHAPES, of DTYPES, seed
Entries = list[float]


class Job(NamedTuple):
    """One step, in numbers that another process understands."""

    specs: list[Spec]
    owners: list[int]
    coefficients: list[float]
    silenced: list[bool] | None = None
    found_inf: float | None = None
    grad_scale: float = 1.0
    poison: float | None = None  # the last entry of every gradient
    wide: bool = False  # tables in float64
    chunk: int = 4096
    shifts: tuple[int, int, int, int] = (0, 0, 0, 0)  # entries by which each of the four begins later in memory


def numbers(step: int, **changed: float) -> list[float]:
    lr, beta1, beta2, weight_decay, eps = (SETTINGS | changed).values()
    root = math.sqrt(1 - beta2**step)
    return [1 - lr * weight_decay, 1 - beta1, beta2, 1 - beta2, lr / (1 - beta1**step), root, eps]


def four(job: Job, spec: Spec) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A parameter, its gradient and its moments: alike in shape and strides."""
    name, dtype, seed = spec
    scales = (1.0, 0.1 * job.grad_scale, 0.1, 0.1)
    p, g, m, v = (
        moved(build((name, dtype, 4 * seed + role, scale)), shift)
        for role, (scale, shift) in enumerate(zip(scales, job.shifts, strict=True))
    )
    v.abs_()
    if job.poison is not None and g.numel():
        g[(-1,) * g.dim()] = job.poison
    return p, g, m, v


def moved(tensor: Tensor, shift: int) -> Tensor:
    """The same entries in the same arrangement, ``shift`` entries further on in a storage of their own."""
    length = tensor.untyped_storage().nbytes() // tensor.itemsize
    there = torch.full((length + shift,), 7.0, dtype=tensor.dtype)
    return there.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset() + shift).copy_(tensor)


def storage(tensor: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


# --- what is done over there: arguments and results are plain numbers


def updated(job: Job, numbers: list[float]) -> list[tuple[list[Entries], list[bytes]]]:
    """Entries and bits of parameter and moments after one step, for each tensor."""
    tensors = [four(job, spec) for spec in job.specs]
    before = [[storage(tensor).clone() for tensor in each] for each in tensors]
    old = [[tensor.clone() for tensor in each] for each in tensors]
    roles = [list(role) for role in zip(*tensors, strict=True)]
    kind = torch.float64 if job.wide else torch.float32
    AdamWSegments(roles[0], job.owners, len(job.coefficients), chunk=job.chunk).step_(
        *roles,
        numbers=torch.tensor(numbers, dtype=kind),
        coefficients=torch.tensor(job.coefficients, dtype=kind),
        silenced=None if job.silenced is None else torch.tensor(job.silenced),
        found_inf=None if job.found_inf is None else torch.tensor(job.found_inf),
    )
    results = []
    for new, was, whole in zip(tensors, old, before, strict=True):
        assert torch.equal(storage(new[1]), whole[1]), "a gradient was written"
        written = (new[0], new[2], new[3])
        results.append(([tensor.double().flatten().tolist() for tensor in written], [bits(one) for one in written]))
        for tensor, entries, around in zip(new, was, whole, strict=True):
            tensor.copy_(entries)
            assert torch.equal(storage(tensor), around), "something beside the tensor was written"
    return results


CUTS: list[tuple[int, Callable[[Tensor], Tensor], int]] = [  # which tensor, which part of it, whose component
    (0, lambda x: x[:13], 0),
    (0, lambda x: x[13:], 1),
    (1, lambda x: x[:, :32], 1),
    (1, lambda x: x[:, 32:65], 2),
    (1, lambda x: x[:, 65:], 0),
    (2, lambda x: x.t(), 3),
    (3, lambda x: x, 3),
    (4, lambda x: x[1:], 2),
    (4, lambda x: x[:1], 0),
]
WHOLE = [(33, 20), (40, 96), (24, 17), (1, 300), (1001,)]
FACTORS = [0.25, 1.0, 0.7, 0.3]
EPS = {"float16": 1e-3}  # where squares vanish, the default makes infinity out of them


def drawn_four(dtype: str, steps: int) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Parameters, and gradients for every step."""
    generator = torch.Generator().manual_seed(3)

    def draw(scale: float) -> list[Tensor]:
        return [(scale * torch.randn(shape, generator=generator)).to(getattr(torch, dtype)) for shape in WHOLE]

    return draw(1.0), [draw(0.1) for _ in range(steps)]


def trained(dtype: str, steps: int) -> list[list[Entries]]:
    """Parameters and moments of ``WHOLE`` after some steps."""
    parameters, gradients = drawn_four(dtype, steps)
    first, second = ([torch.zeros_like(parameter) for parameter in parameters] for _ in range(2))
    owners = [owner for _, _, owner in CUTS]
    kind = torch.float64 if dtype == "float64" else torch.float32

    def cut(tensors: list[Tensor]) -> list[Tensor]:
        return [view(tensors[which]) for which, view, _ in CUTS]

    segments = AdamWSegments(cut(parameters), owners, len(FACTORS))
    for step, grads in enumerate(gradients, 1):
        tensors = [cut(each) for each in (parameters, grads, first, second)]
        assert segments.fits(*tensors)
        segments.step_(
            *tensors,
            numbers=torch.tensor(numbers(step, eps=EPS.get(dtype, 1e-8)), dtype=kind),
            coefficients=torch.tensor(FACTORS, dtype=kind),
        )
    return [[tensor.double().flatten().tolist() for tensor in each] for each in (parameters, first, second)]


def launches(number: int) -> int:
    tensors = [torch.ones(3, dtype=[torch.float32, torch.bfloat16][index % 2]) for index in range(number)]
    run, counted = _segments._run, []

    def counting(programs: int, *tables: Tensor, **constants: object) -> None:
        counted.append(programs)
        run(programs, *tables, **constants)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_segments, "_run", counting)
        roles = [[tensor.clone() for tensor in tensors] for _ in range(4)]
        AdamWSegments(tensors, list(range(number)), number).step_(
            *roles, numbers=torch.tensor(numbers(1)), coefficients=torch.ones(number)
        )
    return len(counted)


def far_apart() -> list[list[Entries]]:
    """Rows whose distance 32 bits cannot count: of 4 GiB, asked for and never filled, three pages are used."""
    whole = torch.empty(2**31 + 64, dtype=torch.float16)
    p, g, m, v = (whole.as_strided((3, 5), (2**30, 1), 8 * role) for role in range(4))
    for role, tensor in enumerate((p, g, m, v)):
        tensor.copy_(torch.arange(15).reshape(3, 5) + role)
    AdamWSegments([p], [0], 1).step_(
        [p], [g], [m], [v], numbers=torch.tensor([1.0, 0.5, 0.5, 0.0, 0.0, 1.0, 1.0]), coefficients=torch.tensor([2.0])
    )
    return [tensor.tolist() for tensor in (p, m, v)]


def versions() -> list[tuple[int, int]]:
    tensors = [torch.ones(3) for _ in range(4)]
    begun = [tensor._version for tensor in tensors]
    AdamWSegments(tensors[:1], [0], 1).step_(
        *([tensor] for tensor in tensors), numbers=torch.tensor(numbers(1)), coefficients=torch.ones(1)
    )
    return [(before, tensor._version) for before, tensor in zip(begun, tensors, strict=True)]


def decayed(kind: str) -> Entries:
    """One step without any gradient, whose decay is a tenth of a millionth."""
    p = drawn_four("float32", 0)[0][1]
    g, m, v = (torch.zeros_like(p) for _ in range(3))
    table = torch.tensor(numbers(1, lr=1e-6), dtype=getattr(torch, kind))
    AdamWSegments([p], [0], 1).step_([p], [g], [m], [v], numbers=table, coefficients=torch.ones(1))
    return p.flatten().tolist()


def infinite(weight_decay: float) -> Entries:
    """A mask of minus infinity, as a parameter without gradient."""
    p = torch.full((9,), -INF)
    g, m, v = (torch.zeros_like(p) for _ in range(3))
    table = torch.tensor(numbers(1, weight_decay=weight_decay))
    AdamWSegments([p], [0], 1).step_([p], [g], [m], [v], numbers=table, coefficients=torch.ones(1))
    return p.tolist()


# --- the slow twin


def slow(job: Job, spec: Spec, owner: int, table: Sequence[float]) -> list[Tensor]:
    """The definition, in float64: parameter and moments."""
    kind = torch.float64 if job.wide else torch.float32
    decay, fresh, kept, fresh_square, size, root, eps = torch.tensor(table, dtype=kind).double()
    p, g, m, v = (tensor.double() for tensor in four(job, spec))
    off = job.silenced is not None and job.silenced[owner]
    g = torch.zeros_like(g) if off else g * torch.tensor(job.coefficients[owner], dtype=kind).double()
    m = m + (g - m) * fresh
    v = v * kept + fresh_square * g * g
    p = p * decay - size * m / (v.sqrt() / root + eps)
    return [p, m, v]


def compare(job: Job, results: list[tuple[list[Entries], list[bytes]]], table: Sequence[float]) -> None:
    for spec, owner, (found, _) in zip(job.specs, job.owners, results, strict=True):
        near = TOLERANCE[spec[1]]
        for entries, exact in zip(found, slow(job, spec, owner, table), strict=True):
            largest = exact.nan_to_num(0.0, 0.0, 0.0).abs().max().item() if exact.numel() else 0.0
            least = max(near * largest, 2**-24 if spec[1] == "float16" else 0.0)  # a step below its normal numbers
            torch.testing.assert_close(
                torch.tensor(entries, dtype=torch.float64), exact.flatten(), rtol=near, atol=least, equal_nan=True
            )


# --- one step


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_layout_is_updated_as_in_float64(interpreted: Callable[..., Any], dtype: str) -> None:
    specs = [(name, dtype, seed) for seed, name in enumerate(SHAPES)]
    job = Job(specs, [index % 3 for index in range(len(specs))], [0.3, 1.0, 1e-3], wide=dtype == "float64")
    compare(job, interpreted(updated, job, numbers(3)), numbers(3))


@settings(max_examples=40)
@given(
    specs=st.lists(
        st.tuples(st.sampled_from(list(SHAPES)), st.sampled_from(DTYPES), st.integers(0, 9)), min_size=1, max_size=4
    ),
    wide=st.booleans(),
    chunk=st.sampled_from([1000, 4096]),
    shifts=st.sampled_from([(0, 0, 0, 0), (1, 1, 1, 1), (0, 8, 0, 0), (0, 0, 3, 0), (1, 0, 0, 0), (0, 0, 0, 1)]),
    step=st.integers(1, 1000),
    data=st.data(),
)
def test_components_own_any_tensors(
    interpreted: Callable[..., Any],
    specs: list[Spec],
    wide: bool,
    chunk: int,
    shifts: tuple[int, int, int, int],
    step: int,
    data: st.DataObject,
) -> None:
    count = data.draw(st.integers(1, 4), label="components")
    owners = data.draw(st.lists(st.integers(0, count - 1), min_size=len(specs), max_size=len(specs)), label="owners")
    factor = st.sampled_from([0.0, 1e-4, 0.3, 1.0, -1.0, 2.0])
    coefficients = data.draw(st.lists(factor, min_size=count, max_size=count), label="coefficients")
    silenced = data.draw(st.none() | st.lists(st.booleans(), min_size=count, max_size=count), label="silenced")
    # float32 tables are exact enough for float64 tensors too: the twin uses the same.
    job = Job(specs, owners, coefficients, silenced, wide=wide, chunk=chunk, shifts=shifts)
    compare(job, interpreted(updated, job, numbers(step)), numbers(step))


NAMES = ("several boxes", "unaligned", "columns", "ragged columns", "a few")
ALL = [(name, dtype, 0) for name in NAMES for dtype in ("float32", "bfloat16")]


@pytest.mark.parametrize("shifts", [(0, 0, 0, 0), (0, 1, 0, 0)], ids=["aligned", "elsewhere"])
def test_where_the_four_lie_in_memory_changes_no_bit(
    interpreted: Callable[..., Any], shifts: tuple[int, int, int, int]
) -> None:
    """Vectors, edges and single entries are computed alike."""
    job = Job(ALL, [0] * len(ALL), [0.3])
    lying = interpreted(updated, job, numbers(2))
    moved_on = interpreted(updated, job._replace(shifts=shifts, chunk=1000), numbers(2))
    assert [after for _, after in moved_on] == [after for _, after in lying]


def test_a_coefficient_is_multiplied_by_once_and_exactly(interpreted: Callable[..., Any]) -> None:
    """Twice the gradient at half the coefficient: powers of 2 lose no bit."""
    job = Job(ALL, [0] * len(ALL), [1.0])
    halved = job._replace(grad_scale=2.0, coefficients=[0.5])
    plain, same = (interpreted(updated, each, numbers(2)) for each in (job, halved))
    assert [after for _, after in same] == [after for _, after in plain]


@pytest.mark.parametrize("coefficient", [1.0, 0.0, NAN])
@pytest.mark.parametrize("poison", [NAN, INF, None])
def test_a_silenced_component_is_updated_by_zeros_and_no_other_is(
    interpreted: Callable[..., Any], poison: float | None, coefficient: float
) -> None:
    owners = [index % 2 for index in range(len(ALL))]
    zeros = interpreted(updated, Job(ALL, owners, [1.0, 1.0], grad_scale=0.0), numbers(2))
    heard = interpreted(updated, Job(ALL, owners, [1.0, 1.0], poison=poison), numbers(2))
    job = Job(ALL, owners, [1.0, coefficient], [False, True], poison=poison)
    found = interpreted(updated, job, numbers(2))
    assert [after for _, after in found[1::2]] == [after for _, after in zeros[1::2]]
    assert [after for _, after in found[::2]] == [after for _, after in heard[::2]]


def test_a_coefficient_of_0_silences_what_is_finite(interpreted: Callable[..., Any]) -> None:
    zeros = interpreted(updated, Job(ALL, [0] * len(ALL), [1.0], grad_scale=0.0), numbers(2))
    found = interpreted(updated, Job(ALL, [0] * len(ALL), [0.0]), numbers(2))
    assert [entries for entries, _ in found] == [entries for entries, _ in zeros]  # but for the sign of 0


def test_a_coefficient_that_is_nan_spreads_over_its_component_alone(interpreted: Callable[..., Any]) -> None:
    owners = [index % 2 for index in range(len(ALL))]
    found = interpreted(updated, Job(ALL, owners, [1.0, NAN], [False, False]), numbers(2))
    clean = interpreted(updated, Job(ALL, owners, [1.0, 1.0]), numbers(2))
    assert [after for _, after in found[::2]] == [after for _, after in clean[::2]]
    assert all(math.isnan(entry) for written, _ in found[1::2] for entries in written for entry in entries)


@pytest.mark.parametrize("poison", [NAN, -INF])
def test_what_is_not_finite_in_a_gradient_reaches_one_entry(interpreted: Callable[..., Any], poison: float) -> None:
    job = Job(ALL, [0] * len(ALL), [0.5], poison=poison)
    found, clean = (interpreted(updated, each, numbers(2)) for each in (job, job._replace(poison=None)))
    for (dirty, _), (good, _) in zip(found, clean, strict=True):
        assert [entries[:-1] for entries in dirty] == [entries[:-1] for entries in good]
        assert math.isnan(dirty[0][-1])
        assert not any(math.isfinite(entries[-1]) for entries in dirty)


@pytest.mark.parametrize("found_inf", [1.0, INF, NAN, [1.0]])
def test_where_an_infinity_was_found_nothing_is_written(interpreted: Callable[..., Any], found_inf: Any) -> None:
    job = Job(ALL, [0] * len(ALL), [NAN], [True], found_inf=found_inf, poison=NAN)
    before = [[bits(tensor) for tensor in (p, m, v)] for p, _, m, v in (four(job, spec) for spec in ALL)]
    assert [after for _, after in interpreted(updated, job, numbers(2))] == before


@pytest.mark.parametrize("found_inf", [0.0, -0.0, [0.0]])
def test_where_none_was_found_all_is(interpreted: Callable[..., Any], found_inf: Any) -> None:
    job = Job(ALL, [0] * len(ALL), [0.5])
    plain = interpreted(updated, job, numbers(2))
    assert interpreted(updated, job._replace(found_inf=found_inf), numbers(2)) == plain


def test_tensors_without_any_entry_launch_nothing_wrong(interpreted: Callable[..., Any]) -> None:
    job = Job([("no entries", "float32", 0)], [0], [0.5])
    assert interpreted(updated, job, numbers(1)) == [([[], [], []], [b"", b"", b""])]


# --- several steps, beside torch


@pytest.mark.parametrize("how", ["fused", "foreach"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_several_steps_are_those_of_torch_after_clipping(interpreted: Callable[..., Any], dtype: str, how: str) -> None:
    steps = 4
    parameters, gradients = drawn_four(dtype, steps)
    lr, beta1, beta2, weight_decay, eps = (SETTINGS | {"eps": EPS.get(dtype, 1e-8)}).values()
    kind: dict[str, Any] = {how: True}
    optimizer = torch.optim.AdamW(parameters, lr, (beta1, beta2), eps, weight_decay, **kind)
    for grads in gradients:
        for which, view, owner in CUTS:
            view(grads[which]).mul_(FACTORS[owner])
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad
        optimizer.step()
    state = [optimizer.state[parameter] for parameter in parameters]
    expected = [parameters, [each["exp_avg"] for each in state], [each["exp_avg_sq"] for each in state]]
    near = {"float64": 1e-12, "float32": 3e-6, "float16": 0.01, "bfloat16": 0.07}[dtype]
    for found, exact in zip(interpreted(trained, dtype, steps), expected, strict=True):
        for entries, tensor in zip(found, exact, strict=True):
            largest = tensor.abs().max().item()
            least = max(near * largest, 2e-7 if dtype == "float16" else 0.0)
            torch.testing.assert_close(
                torch.tensor(entries, dtype=torch.float64), tensor.double().flatten(), rtol=near, atol=least
            )


def test_decay_is_not_rounded_where_its_number_is_float64(interpreted: Callable[..., Any]) -> None:
    before = drawn_four("float32", 0)[0][1].double().flatten()
    exact = (before * numbers(1, lr=1e-6)[0]).float().tolist()
    assert interpreted(decayed, "float64") == exact
    assert interpreted(decayed, "float32") == pytest.approx(exact, rel=1.2e-7)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_infinite_parameters_are_what_torch_makes_of_them(interpreted: Callable[..., Any], weight_decay: float) -> None:
    parameter = torch.full((9,), -INF)
    parameter.grad = torch.zeros_like(parameter)
    torch.optim.AdamW([parameter], weight_decay=weight_decay, fused=True).step()
    assert interpreted(infinite, weight_decay) == parameter.tolist() == [-INF] * 9


# --- launches, tables, addresses


def test_the_number_of_launches_does_not_depend_on_the_number_of_tensors(interpreted: Callable[..., Any]) -> None:
    assert interpreted(launches, 3) == interpreted(launches, 300) == 2  # one for each dtype


def test_offsets_need_more_than_32_bits(interpreted: Callable[..., Any]) -> None:
    rows = [[float(5 * row + column) for column in range(5)] for row in range(3)]
    means = [[(entry + 2 + 2 * (entry + 1)) / 2 for entry in row] for row in rows]
    squares = [[(entry + 3) / 2 for entry in row] for row in rows]
    assert interpreted(far_apart) == [rows, means, squares]


def test_what_is_written_counts_as_a_change_to_autograd(interpreted: Callable[..., Any]) -> None:
    parameter, gradient, first, second = interpreted(versions)
    assert gradient[0] == gradient[1]
    assert [after - before for before, after in (parameter, first, second)] == [1, 1, 1]


def zeros(**changed: Tensor) -> dict[str, list[Tensor]]:
    names = ("parameters", "gradients", "exp_avgs", "exp_avg_sqs")
    return {name: [torch.zeros(2, 3), changed.get(name, torch.zeros(4, 4))] for name in names}


def test_what_fits_has_the_same_arrangement() -> None:
    segments = AdamWSegments(zeros()["parameters"], [0, 1], 2)
    assert segments.fits(**zeros())
    for name in zeros():
        assert not segments.fits(**zeros(**{name: torch.zeros(4, 4).double()}))
        assert not segments.fits(**zeros(**{name: torch.zeros(4, 4).t()[:, :3]}))
        assert not segments.fits(**zeros(**{name: torch.zeros(4, 5)[:, :4]}))
        assert not segments.fits(**zeros(**{name: torch.zeros(16)}))
        assert not segments.fits(**zeros(**{name: torch.zeros(4, 4, device="meta")}))
        assert not segments.fits(**zeros(**{name: torch.zeros(4, 4).to_sparse()}))
        assert not segments.fits(**zeros() | {name: [torch.zeros(2, 3)]})


def test_strides_of_dimensions_of_size_1_do_not_count() -> None:
    """PyTorch makes up those of gradients, of a linear layer with one output for instance."""
    row, column = torch.zeros(1, 5), torch.zeros(5, 1).t()
    assert row.stride() != column.stride()
    assert AdamWSegments([row], [0], 1).fits([row], [column], [row], [column])
    cut, other = torch.zeros(4, 9)[:1, ::2], torch.zeros(4, 12)[:1, :9:2]
    assert cut.stride() != other.stride()
    assert AdamWSegments([cut], [0], 1).fits([cut], [other], [cut], [cut])
    assert not AdamWSegments([cut], [0], 1).fits([cut], [row], [cut], [cut])


def test_tables_are_made_on_the_cpu_whatever_the_default_device() -> None:
    parameter = torch.zeros(3, 4)
    with torch.device("meta"):
        segments = AdamWSegments([parameter], [0], 1)
    assert {launch.boxes.device for launch in segments._launches} == {CPU}


def test_tables_are_not_made_during_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_segments, "capturing", lambda device: True)
    with pytest.raises(OptimizerError, match="before the capture"):
        AdamWSegments([torch.zeros(3)], [0], 1)


@pytest.mark.parametrize(
    ("parameters", "owners", "message"),
    [
        ([], [], "at least one"),
        ([torch.zeros(2), torch.zeros(2, device="meta")], [0, 0], "2 devices"),
        ([torch.zeros(2, dtype=torch.complex64)], [0], "dtype torch.complex64"),
        ([torch.eye(2).to_sparse()], [0], "layout torch.sparse_coo"),
        ([torch.zeros(2), torch.zeros(2)], [0, 2], "1 of them outside of the 2 components"),
        ([torch.zeros(2)], [-1], "1 of them outside"),
        ([torch.zeros(2), torch.zeros(2)], [0], "1 owners for 2 parameters"),
    ],
    ids=["none", "devices", "complex", "sparse", "owner", "negative owner", "owners"],
)
def test_parameters_that_the_kernel_would_misread_are_refused(
    parameters: list[Tensor], owners: list[int], message: str
) -> None:
    with pytest.raises(OptimizerError, match=re.escape(message)):
        AdamWSegments(parameters, owners, 2)


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("numbers", torch.zeros(6), "shape [6], torch.float32, on cpu, but reads shape [7]"),
        ("numbers", torch.zeros(7, dtype=torch.int64), "numbers of shape [7], torch.int64"),
        ("coefficients", torch.zeros(3), "coefficients of shape [3]"),
        ("coefficients", torch.zeros(2, device="meta"), "on meta, but reads shape [2], torch.float32, on cpu"),
        ("coefficients", torch.zeros(2).half(), "torch.float16"),
        ("silenced", torch.zeros(2), "silenced of shape [2], torch.float32"),
        ("silenced", torch.zeros(1, dtype=torch.bool), "silenced of shape [1]"),
        ("found_inf", torch.zeros(2), "found_inf of shape [2]"),
        ("found_inf", torch.zeros(1, dtype=torch.bool), "found_inf of shape [1], torch.bool"),
    ],
)
def test_tables_that_the_kernel_would_misread_are_refused(name: str, table: Tensor, message: str) -> None:
    tables: dict[str, Any] = {"numbers": torch.zeros(7), "coefficients": torch.zeros(2)} | {name: table}
    segments = AdamWSegments(zeros()["parameters"], [0, 1], 2)
    with pytest.raises(OptimizerError, match=re.escape(message)):
        segments.step_(*zeros().values(), **tables)


# --- Triton itself

TABLES = {
    "boxes": "*i64",
    "starts": "*i64",
    "numbers": "*fp32",
    "coefficients": "*fp32",
    "silenced": "*u8",
    "found_inf": "*fp32",
}


def compiled(dtype: str, folder: Path) -> tuple[str, bytes]:
    """Compile for a Hopper GPU, which need not be there, and return assembly and machine code."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from evenkeel.optim.gpu import _kernels

    constants = {
        "element": getattr(tl, dtype),
        "accumulator": tl.float64 if dtype == "float64" else tl.float32,
        "block": _segments._BLOCK // getattr(torch, dtype).itemsize,
        "width": len(COLUMNS),
    }
    attributes = {(place,): [["tt.divisibility", 16]] for place in range(2)}  # the kernel does not ask for the others'
    signature = TABLES | dict.fromkeys(constants, "constexpr")
    source = ASTSource(_kernels.update_boxes, signature=signature, constexprs=constants, attrs=attributes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(folder))
        options = {"num_warps": _segments._WARPS, "enable_fp_fusion": True}
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm
    return made["ptx"], made["cubin"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu_16_bytes_are_read_and_written_at_once_and_nothing_spills(tmp_path: Path, dtype: str) -> None:
    assembly, code = compiled(dtype, tmp_path)
    vectors = _segments._BLOCK // (16 * 32 * _segments._WARPS)  # of each of the four, for each thread
    assert assembly.count("ld.global.v4.b32") == 2 * 4 * vectors  # runs, and rows of vectors
    assert assembly.count("st.global.v4.b32") == 2 * 3 * vectors
    assert used(code, tmp_path)["STACK"] == used(code, tmp_path)["LOCAL"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_compiles_for_a_gpu_with_registers_for_two_programs(tmp_path: Path, dtype: str) -> None:
    _, code = compiled(dtype, tmp_path)
    assert used(code, tmp_path)["REG"] <= 65536 // (2 * 32 * _segments._WARPS)


def used(code: bytes, folder: Path) -> dict[str, int]:
    """What a thread of the kernel uses: registers, and bytes of other memory."""
    import triton.backends.nvidia

    (folder / "kernel").write_bytes(code)
    tool = Path(next(iter(triton.backends.nvidia.__path__))) / "bin" / "cuobjdump"
    told = subprocess.run(
        [tool, "--dump-resource-usage", folder / "kernel"], capture_output=True, text=True, check=True
    ).stdout
    return {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", told)}
