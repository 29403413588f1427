"""The multi-tensor kernels on the CPU: Triton interprets them, in a process of its own. Compiled for a GPU, too."""

from __future__ import annotations

import math
import multiprocessing
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evenkeel.clipping.gpu import Segments, _pointers, _segments, available
from evenkeel.clipping.gpu._boxes import COLUMNS, boxes
from evenkeel.clipping.gpu._pointers import PointerTable
from evenkeel.errors import GradientError

pytestmark = [pytest.mark.slow, pytest.mark.matrix]  # Triton's interpreter is slow, and a GPU is what these are for

CPU = torch.device("cpu")
INF, NAN = math.inf, math.nan
ORDERS = [0.5, 1.0, 2.0, 3.0, 8.0, INF]
DTYPES = ["float64", "float32", "bfloat16", "float16"]
# What storing a product in these dtypes may cost. The interpreter cuts bfloat16 off where a GPU rounds it.
TOLERANCE = {"float64": 1e-15, "float32": 6e-8, "float16": 2**-11, "bfloat16": 2**-7}

SHAPES: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "one entry": ((), lambda x: x),
    "no entries": ((0, 3), lambda x: x),
    "a few": ((5,), lambda x: x),
    "a matrix": ((33, 65), lambda x: x),
    "several boxes": ((9001,), lambda x: x),
    "unaligned": ((4103,), lambda x: x[1:]),
    "unaligned and short": ((6,), lambda x: x[1:3]),
    "columns": ((40, 96), lambda x: x[:, 32:64]),
    "ragged columns": ((40, 90), lambda x: x[:, 30:61]),
    "long rows": ((3, 4000), lambda x: x[:, 100:3100]),
    "interleaved heads": ((96, 30), lambda x: x.unfold(0, 8, 24)),
    "three dimensions": ((6, 20, 24), lambda x: x[::2, 3:17, 8:16]),
    "five dimensions": ((4, 3, 4, 5, 6), lambda x: x[::2, :2, ::3, :4, ::5]),
    "transposed": ((40, 31), lambda x: x.t()),
    "every second": ((30, 70), lambda x: x[:, ::2]),
    "one column": ((300, 3), lambda x: x[:, 1:2]),
}

LONG: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "many boxes": ((200_001,), lambda x: x),
    "many rows": ((1000, 200), lambda x: x[:, 8:136]),
}

Spec = tuple[str, str, int, float]  # of SHAPES or LONG, of DTYPES, seed, scale


def build(spec: Spec) -> Tensor:
    name, dtype, seed, scale = spec
    shape, view = (SHAPES | LONG)[name]
    entries = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return view((scale * entries).to(getattr(torch, dtype)))


def slow_norm(tensors: list[Tensor], order: float) -> float:
    """The definition, in Python's double precision."""
    entries = [abs(entry) for tensor in tensors for entry in tensor.double().flatten().tolist()]
    if order == INF:
        return max(entries, default=0.0)
    return math.fsum(entry**order for entry in entries) ** (1 / order)


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Callable[..., Any]]:
    """Call functions of this module where kernels are interpreted.

    Triton decides that when it is imported; so it is done in another process, and this one stays as it is.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            patch.setenv("PYTHONWARNINGS", "error:divide by zero")  # NumPy's, of the logarithm of 0
            assert pool.submit(available, CPU).result()
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


# --- what is done over there: arguments and results are plain numbers


def norms_of(
    specs: list[Spec],
    owners: list[int],
    count: int,
    order: float,
    chunk: int = 4096,
    put: dict[int, tuple[int, float]] | None = None,
) -> tuple[list[float], str]:
    tensors = [build(spec) for spec in specs]
    for which, (place, value) in (put or {}).items():
        tensors[which][torch.unravel_index(torch.tensor(place % tensors[which].numel()), tensors[which].shape)] = value
    norms = Segments(tensors, owners, count, chunk=chunk).norms(tensors, order)
    return norms.tolist(), str(norms.dtype)


def scaled(
    specs: list[Spec],
    owners: list[int],
    coefficients: list[float],
    silenced: list[bool] | None,
    poison: float | None = None,
    wide: bool = False,
) -> tuple[list[list[float]], list[bytes]]:
    tensors = [build(spec) for spec in specs]
    if poison is not None:
        for tensor in tensors:
            tensor.flatten()[:1].fill_(poison) if tensor.is_contiguous() else tensor[..., :1].fill_(poison)
    factors = torch.tensor(coefficients, dtype=torch.float64 if wide else torch.float32)
    off = None if silenced is None else torch.tensor(silenced)
    Segments(tensors, owners, len(coefficients), chunk=4096).scale_(tensors, factors, off)
    return [tensor.double().flatten().tolist() for tensor in tensors], [bits(tensor) for tensor in tensors]


def launches(number: int) -> tuple[Counter[str], Counter[str]]:
    tensors = [torch.ones(3, dtype=[torch.float32, torch.bfloat16][index % 2]) for index in range(number)]
    counted: Counter[str] = Counter()
    run = _segments._run

    def counting(kernel: str, *arguments: Any, **constants: Any) -> None:
        counted[kernel] += 1
        run(kernel, *arguments, **constants)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_segments, "_run", counting)
        segments = Segments(tensors, list(range(number)), number)
        segments.norms(tensors, 2.0)
        norms = counted.copy()
        segments.scale_(tensors, torch.ones(number))
    return norms, counted - norms


def far_apart() -> tuple[list[float], list[float]]:
    """Rows whose distance 32 bits cannot count: of 4 GiB, asked for and never filled, three pages are used."""
    rows = torch.empty(2**31 + 8, dtype=torch.float16).as_strided((3, 5), (2**30, 1))
    rows.copy_(torch.arange(15).reshape(3, 5))
    segments = Segments([rows], [0], 1)
    norms = segments.norms([rows], 1.0)
    segments.scale_([rows], torch.tensor([2.0]))
    return norms.tolist(), rows.flatten().tolist()


def twice() -> list[list[float]]:
    """The norms of the same entries: twice, and somewhere else in memory."""
    tensors = [build((name, "float32", 0, 1.0)) for name in SHAPES]
    owners = [index % 3 for index in range(len(tensors))]
    segments = Segments(tensors, owners, 3, chunk=2048)
    moved = [
        torch.empty(tensor.untyped_storage().nbytes() // 4 + 64).as_strided(tensor.shape, tensor.stride())
        for tensor in tensors
    ]
    for there, here in zip(moved, tensors, strict=True):
        there.copy_(here)
    return [segments.norms(each, 2.0).tolist() for each in (tensors, tensors, moved)]


def versions() -> tuple[int, int, int]:
    tensor = torch.ones(3)
    segments = Segments([tensor], [0], 1)
    begun = tensor._version
    segments.norms([tensor], 2.0)
    read = tensor._version
    segments.scale_([tensor], torch.tensor([0.5]))
    return begun, read, tensor._version


# --- norms


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_of_every_layout_are_those_of_float64(interpreted: Callable[..., Any], dtype: str, order: float) -> None:
    specs = [(name, dtype, seed, 1e-2) for seed, name in enumerate(SHAPES)]
    norms, kind = interpreted(norms_of, specs, list(range(len(specs))), len(specs), order)
    expected = [slow_norm([build(spec)], order) for spec in specs]
    exact = dtype == "float64"
    assert norms == pytest.approx(expected, rel=1e-14 if exact else 5e-7)
    assert kind == ("torch.float64" if exact else "torch.float32")


@settings(max_examples=25)
@given(
    specs=st.lists(
        st.tuples(
            st.sampled_from(list(SHAPES)),
            st.sampled_from(DTYPES),
            st.integers(0, 9),
            st.sampled_from([1e-3, 1.0, 30.0]),
        ),
        min_size=1,
        max_size=5,
    ),
    order=st.sampled_from(ORDERS),
    chunk=st.sampled_from([1000, 4096]),
    data=st.data(),
)
def test_components_own_any_tensors(
    interpreted: Callable[..., Any], specs: list[Spec], order: float, chunk: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, 4), label="components")
    owners = data.draw(st.lists(st.integers(0, count - 1), min_size=len(specs), max_size=len(specs)), label="owners")
    norms, kind = interpreted(norms_of, specs, owners, count, order, chunk)
    tensors = [build(spec) for spec in specs]
    own = [[tensor for tensor, owner in zip(tensors, owners, strict=True) if owner == part] for part in range(count)]
    assert norms == pytest.approx([slow_norm(part, order) for part in own], rel=1e-6)
    assert (kind == "torch.float64") is any(spec[1] == "float64" for spec in specs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", LONG)
def test_boxes_of_the_size_that_a_gpu_gets_are_summed_exactly(
    interpreted: Callable[..., Any], name: str, dtype: str
) -> None:
    spec = (name, dtype, 0, 1.0)
    norms, _ = interpreted(norms_of, [spec], [0], 1, 2.0, 65536)
    assert norms == pytest.approx([slow_norm([build(spec)], 2.0)], rel=1e-6)


@pytest.mark.parametrize("order", [1.0, 2.0, 3.0, INF])
@pytest.mark.parametrize("value", [NAN, -INF])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_not_finite_stays_in_its_component(
    interpreted: Callable[..., Any], dtype: str, value: float, order: float
) -> None:
    places = (0, 1, 777, -1)  # the edge before the first vector, vectors, and the edge behind the last
    poisoned = [
        (name, place) for name in ("several boxes", "unaligned", "columns", "ragged columns") for place in places
    ]
    specs = [(name, dtype, 0, 1.0) for name, _ in poisoned for name in (name, "a few")]  # every second one is clean
    clean, _ = interpreted(norms_of, specs, list(range(32)), 32, order)
    put = {2 * index: (place, value) for index, (_, place) in enumerate(poisoned)}
    norms, _ = interpreted(norms_of, specs, list(range(32)), 32, order, 4096, put)
    assert norms[1::2] == clean[1::2]
    assert all(map(math.isnan if math.isnan(value) else math.isinf, norms[::2]))


def test_a_component_that_owns_nothing_has_norm_zero(interpreted: Callable[..., Any]) -> None:
    norms, _ = interpreted(norms_of, [("a few", "float32", 0, 1.0), ("no entries", "float32", 0, 1.0)], [3, 1], 5, 2.0)
    assert norms[3] > 0
    assert norms[:3] + norms[4:] == [0.0] * 4


def test_tensors_without_any_entry_launch_nothing_wrong(interpreted: Callable[..., Any]) -> None:
    assert interpreted(norms_of, [("no entries", "float32", 0, 1.0)], [0], 2, INF) == ([0.0, 0.0], "torch.float32")
    assert interpreted(scaled, [("no entries", "float32", 0, 1.0)], [0], [0.5], None) == ([[]], [b""])


def test_powers_reach_beyond_float32(interpreted: Callable[..., Any]) -> None:
    """The eighth power of 1e-12 is nothing in float32."""
    spec = ("a matrix", "float32", 0, 1e-12)
    norms, _ = interpreted(norms_of, [spec], [0], 1, 8.0)
    assert norms == pytest.approx([slow_norm([build(spec)], 8.0)], rel=1e-6)


def test_norms_are_the_same_bits_again_wherever_tensors_lie(interpreted: Callable[..., Any]) -> None:
    first, *others = interpreted(twice)
    assert others == [first] * 2


# --- scaling


@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_layout_is_scaled_by_its_components_coefficient(
    interpreted: Callable[..., Any], dtype: str, wide: bool
) -> None:
    specs = [(name, dtype, seed, 1.0) for seed, name in enumerate(SHAPES)]
    owners = [index % 3 for index in range(len(specs))]
    coefficients = [0.3, 1.0, 1e-3]
    entries, after = interpreted(scaled, specs, owners, coefficients, None, None, wide)
    for spec, owner, found, kept in zip(specs, owners, entries, after, strict=True):
        before = build(spec)
        if coefficients[owner] == 1.0:
            assert kept == bits(before)
        else:
            factor = torch.tensor(coefficients[owner], dtype=torch.float64 if wide else torch.float32).double().item()
            expected = [entry * factor for entry in before.double().flatten().tolist()]
            # Below the smallest normal number of float16 a step is 2**-24.
            assert found == pytest.approx(expected, rel=2 * TOLERANCE[dtype], abs=6e-8 if dtype == "float16" else 0)


@pytest.mark.parametrize("poison", [NAN, INF, -INF, -0.0, 1e-45])
def test_a_coefficient_of_exactly_1_leaves_the_bits(interpreted: Callable[..., Any], poison: float) -> None:
    specs = [(name, "float32", 0, 1.0) for name in ("a matrix", "columns", "unaligned")]
    _, touched = interpreted(scaled, specs, [0, 0, 0], [1.0], None, poison)
    for spec, after in zip(specs, touched, strict=True):
        before = build(spec)
        before.flatten()[:1].fill_(poison) if before.is_contiguous() else before[..., :1].fill_(poison)
        assert after == bits(before)


@pytest.mark.parametrize("coefficient", [1.0, 0.5, 0.0, NAN])
@pytest.mark.parametrize("poison", [NAN, INF, None])
def test_a_silenced_component_becomes_exact_zeros_and_no_other(
    interpreted: Callable[..., Any], poison: float | None, coefficient: float
) -> None:
    names = ("several boxes", "unaligned", "columns", "ragged columns")
    specs = [(name, dtype, 0, 1.0) for dtype in ("float32", "bfloat16") for name in names]
    specs.append(("a few", "float32", 0, 1.0))
    owners = [1] * 8 + [0]
    entries, after = interpreted(scaled, specs, owners, [1.0, coefficient], [False, True], poison)
    assert [value for tensor in entries[:-1] for value in tensor if value != 0.0] == []
    assert all(not any(zeros) for zeros in after[:-1])  # not even the sign of -0
    assert any(after[-1])


def test_a_coefficient_that_is_nan_spreads_over_its_component_alone(interpreted: Callable[..., Any]) -> None:
    specs = [("a matrix", "float32", 0, 1.0), ("columns", "bfloat16", 0, 1.0)]
    first, second = interpreted(scaled, specs, [0, 1], [NAN, 1.0], [False, False])[0]
    assert all(math.isnan(value) for value in first)
    assert second == build(specs[1]).double().flatten().tolist()


def test_scaling_counts_as_a_change_to_autograd(interpreted: Callable[..., Any]) -> None:
    begun, read, written = interpreted(versions)
    assert begun == read
    assert written == begun + 1


# --- launches, tables, addresses


def test_the_number_of_launches_does_not_depend_on_the_number_of_tensors(interpreted: Callable[..., Any]) -> None:
    few, many = interpreted(launches, 3), interpreted(launches, 300)
    assert few == many == ({"partial_sums": 2, "component_norms": 1}, {"scale_boxes": 2})  # one for each dtype


def test_offsets_need_more_than_32_bits(interpreted: Callable[..., Any]) -> None:
    assert interpreted(far_apart) == ([105.0], [2.0 * entry for entry in range(15)])


@st.composite
def strided(draw: st.DrawFn) -> Tensor:
    """Draw a view of places 0, 1, ..., each of which an entry holds, with any strides; it may be empty."""
    view = torch.arange(2 * 5**4).reshape(5, 5, 2, 5, 5)
    for dim in range(view.dim()):
        step, size = draw(st.integers(1, 3)), draw(st.integers(1, 5))
        first = draw(st.integers(0, 2))
        view = view[(slice(None),) * dim + (slice(first, first + size, step),)]
    return view.permute(draw(st.permutations(range(view.dim()))))


@settings(max_examples=100)
@given(view=strided(), chunk=st.sampled_from([1, 2, 5, 16, 1000]))
def test_every_entry_lies_in_exactly_one_box(view: Tensor, chunk: int) -> None:
    base = view.storage_offset()
    found: list[int] = []
    for row in boxes(view.shape, view.stride(), chunk=chunk, tensor=4, component=2).tolist():
        named = dict(zip(COLUMNS, row, strict=True))
        assert (named["tensor"], named["component"]) == (4, 2)
        sizes = [named[f"size{dim}"] for dim in range(3)]
        assert 1 <= math.prod(sizes) <= chunk
        places = [
            base + named["offset"] + a * named["stride0"] + b * named["stride1"] + c * named["stride2"]
            for a in range(sizes[0])
            for b in range(sizes[1])
            for c in range(sizes[2])
        ]
        found.extend(places)
    assert sorted(found) == sorted(view.flatten().tolist())


def test_boxes_of_a_huge_tensor_are_counted_in_64_bits() -> None:
    table = boxes((70_000, 70_000), (70_000, 1), chunk=65536, tensor=0, component=0)
    assert table[:, 4:7].prod(1).sum() == 70_000**2
    assert table[-1, 3] + table[-1, 6] == 70_000**2


def test_tables_are_made_on_the_cpu_whatever_the_default_device() -> None:
    with torch.device("meta"):
        table = boxes((3, 4), (8, 1), chunk=5, tensor=0, component=0)
    assert table.device == CPU


def test_what_fits_has_the_same_arrangement() -> None:
    def arranged(*, last: Tensor) -> list[Tensor]:
        return [torch.zeros(2, 3), last]

    segments = Segments(arranged(last=torch.zeros(4, 4)), [0, 1], 2)
    assert segments.fits(arranged(last=torch.ones(4, 4)))
    assert not segments.fits(arranged(last=torch.zeros(4, 4).double()))
    assert not segments.fits(arranged(last=torch.zeros(4, 5)[:, :4]))
    assert not segments.fits(arranged(last=torch.zeros(16)))
    assert not segments.fits(arranged(last=torch.zeros(4, 4, device="meta")))
    assert not segments.fits(arranged(last=torch.zeros(4, 4))[:1])


def test_addresses_are_copied_again_only_where_something_moved() -> None:
    first, second = torch.zeros(3), torch.zeros(3)
    table = PointerTable(1, CPU)
    known = table.of([first])
    assert known.tolist() == [first.data_ptr()]
    assert table.of([first]) is known
    assert table.of([second]).tolist() == [second.data_ptr()]
    assert known.tolist() == [first.data_ptr()]  # a kernel may still read it


def test_tables_are_not_made_during_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_segments, "capturing", lambda device: True)
    with pytest.raises(GradientError, match="before the capture"):
        Segments([torch.zeros(3)], [0], 1)


def test_a_capture_that_finds_no_table_ready_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    table = PointerTable(1, CPU)
    monkeypatch.setattr(_pointers, "capturing", lambda device: True)
    with pytest.raises(GradientError, match="run a step outside of a capture"):
        table.of([torch.zeros(3)])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([], "at least one tensor"),
        ([torch.zeros(2), torch.zeros(2, device="meta")], "2 devices"),
        ([torch.zeros(2, dtype=torch.complex64)], "dtype torch.complex64"),
        ([torch.eye(2).to_sparse()], "layout torch.sparse_coo"),
    ],
    ids=["none", "devices", "complex", "sparse"],
)
def test_tensors_that_the_kernels_would_misread_are_refused(tensors: list[Tensor], message: str) -> None:
    with pytest.raises(GradientError, match=re.escape(message)):
        Segments(tensors, [0] * len(tensors), 1)


# --- Triton itself


def test_kernels_are_for_gpus() -> None:
    assert not available(CPU)  # without the interpreter, as in this process
    assert not available(torch.device("meta"))


def test_without_triton_clipping_works_and_kernels_are_not_available() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, evenkeel\n"
        "from evenkeel.clipping.gpu import available\n"
        "model = torch.nn.Linear(2, 1); model(torch.ones(1, 2)).sum().backward()\n"
        "evenkeel.clip_grad_norm_(evenkeel.components(model), max_norm=0.5)\n"
        "print(available(torch.device('cpu')), round(model.bias.grad.item(), 3))"
    )
    environment = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "0.5"]


KERNELS = {
    "partial_sums": {"boxes": "*i64", "starts": "*i64", "partials": "*fp64"},
    "scale_boxes": {"boxes": "*i64", "starts": "*i64", "coefficients": "*fp32", "silenced": "*u8"},
    "component_norms": {"partials": "*fp64", "firsts": "*i64", "norms": "*fp32"},
}


def compiled(kernel: str, folder: Path, **constants: Any) -> str:
    """Compile for a Hopper GPU, which need not be there, and return the assembly."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from evenkeel.clipping.gpu import _kernels

    signature = KERNELS[kernel] | dict.fromkeys(constants, "constexpr")
    attributes = {(place,): [["tt.divisibility", 16]] for place in range(len(KERNELS[kernel]))}
    source = ASTSource(getattr(_kernels, kernel), signature=signature, constexprs=constants, attrs=attributes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(folder))
        options = {"num_warps": 8, "enable_fp_fusion": True}
        text: str = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    return text


def box_constants(dtype: str, *, wide: bool = False) -> dict[str, Any]:
    import triton.language as tl

    size = getattr(torch, dtype).itemsize
    accumulator = tl.float64 if wide else tl.float32
    block = 2048 if wide else 16384 // size
    return {"element": getattr(tl, dtype), "accumulator": accumulator, "block": block, "width": len(COLUMNS)}


def test_on_a_gpu_sums_read_16_bytes_at_once(tmp_path: Path) -> None:
    assembly = compiled("partial_sums", tmp_path, order=2.0, **box_constants("bfloat16"))
    assert "ld.global.v4.b32" in assembly
    assert "atom" not in assembly  # what is added in any order is not the same twice


def test_on_a_gpu_scaling_writes_16_bytes_at_once(tmp_path: Path) -> None:
    assembly = compiled("scale_boxes", tmp_path, **box_constants("float32"))
    assert "ld.global.v4.b32" in assembly
    assert "st.global.v4.b32" in assembly


@pytest.mark.slow
@pytest.mark.parametrize("order", [1.0, 2.0, 3.0, INF])
def test_every_order_compiles_for_a_gpu(tmp_path: Path, order: float) -> None:
    assert ".entry component_norms" in compiled("component_norms", tmp_path, order=order, block=1024)
    for dtype in DTYPES:
        wide = dtype == "float64" or order == 3.0
        assert ".entry partial_sums" in compiled(
            "partial_sums", tmp_path, order=order, **box_constants(dtype, wide=wide)
        )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_scaling_every_dtype_compiles_for_a_gpu(tmp_path: Path, dtype: str) -> None:
    constants = box_constants(dtype, wide=dtype == "float64")
    assert ".entry scale_boxes" in compiled("scale_boxes", tmp_path, **constants)
