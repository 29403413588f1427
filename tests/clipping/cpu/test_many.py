"""Numba's kernels against float64, one tensor after the other; and who is let in."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.clipping._bag import EPSILON, INF, NAN, Bag, bits, drawn, slow_norm
from torch import Tensor, nn

from evenkeel import clip_grad_norm_
from evenkeel.clipping import cpu
from evenkeel.clipping.cpu import _threads

SIZES = st.sampled_from([0, 1, 15, 1023, 1024, 1025, 5000])
SCALES = st.sampled_from([1e-38, 1e-25, 1e-3, 1.0, 1e15, 1e25])
TENSORS = st.lists(st.tuples(SIZES, st.integers(0, 9), SCALES), max_size=6)


def made(specs: list[tuple[int, int, float]]) -> list[Tensor]:
    return [drawn(size, seed=seed, scale=scale) for size, seed, scale in specs]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_the_extra_is_here() -> None:
    """Else what follows would test nothing."""
    assert cpu.available()


@given(TENSORS)
def test_norms_are_those_of_float64(specs: list[tuple[int, int, float]]) -> None:
    tensors = made(specs)
    assert cpu.norms(tensors).tolist() == pytest.approx([slow_norm(tensor, 2.0) for tensor in tensors], rel=1e-6)


@pytest.mark.parametrize("value", [0.7, 0.1, 1 / 3, 1e-24, 1e20])
def test_entries_that_are_alike_lose_no_digits(value: float) -> None:
    tensor = torch.full((1_000_001,), value)
    exact = tensor[0].item() * math.sqrt(len(tensor))
    assert cpu.norms([tensor]).item() == pytest.approx(exact, rel=1e-6)


@given(TENSORS)
def test_distances_are_those_of_float64(specs: list[tuple[int, int, float]]) -> None:
    tensors, others = made(specs), made([(size, seed + 100, scale) for size, seed, scale in specs])
    exact = [float((a.double() - b.double()).norm()) for a, b in zip(tensors, others, strict=True)]
    assert cpu.distances(tensors, others).tolist() == pytest.approx(exact, rel=1e-6)


def test_a_distance_to_what_hardly_differs_keeps_its_digits() -> None:
    tensor = drawn(100_001)
    other = tensor * (1 + 2**-20)
    exact = float((tensor.double() - other.double()).norm())
    assert cpu.distances([tensor], [other]).item() == pytest.approx(exact, rel=1e-6)
    assert cpu.distances([tensor], [tensor]).item() == 0.0
    other[77] = NAN
    assert math.isnan(cpu.distances([tensor], [other]).item())


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("place", [0, 1023, 1024, 4999])
def test_what_is_not_finite_is_seen_wherever_it_stands(bad: float, place: int) -> None:
    tensor = drawn(5000)
    tensor[place] = bad
    (norm,) = cpu.norms([tensor]).tolist()
    assert math.isnan(norm) if math.isnan(bad) else norm == INF


@given(TENSORS, st.sampled_from([1.0, 0.5, 3e-9, 0.0]))
def test_scaling_is_one_float32_product(specs: list[tuple[int, int, float]], factor: float) -> None:
    tensors = made(specs)
    wanted = [tensor * torch.tensor(factor) for tensor in tensors]
    cpu.scale_(tensors, torch.full((len(tensors),), factor))
    assert list(map(bits, tensors)) == list(map(bits, wanted))


def test_a_factor_of_nan_is_a_product_too() -> None:
    tensors = [torch.ones(3), torch.ones(3)]
    cpu.scale_(tensors, torch.tensor([NAN, 1.0]))
    assert tensors[0].isnan().all()
    assert tensors[1].tolist() == [1.0, 1.0, 1.0]


@given(TENSORS, st.sampled_from([1e-30, 1e-3, 1.0, 1e20, INF]))
def test_clipping_at_once_is_norm_and_product(specs: list[tuple[int, int, float]], limit: float) -> None:
    tensors = made(specs)
    norms = cpu.norms(tensors).float()
    limits = torch.full_like(norms, limit)
    factors = torch.where(limits.isinf(), 1.0, limits / (norms + EPSILON)).clamp(max=1.0)
    wanted = [tensor * factor for tensor, factor in zip(tensors, factors, strict=True)]
    assert cpu.clip_(tensors, limits, silence=False, epsilon=EPSILON).tolist() == norms.tolist()
    assert list(map(bits, tensors)) == list(map(bits, wanted))


@pytest.mark.parametrize("limit", [1.0, INF])
def test_what_is_not_finite_is_silenced_or_passed_on(limit: float) -> None:
    for silence in (True, False):
        tensors = [torch.tensor([NAN, 1.0]), torch.tensor([INF, 1.0]), torch.tensor([3.0, 4.0])]
        cpu.clip_(tensors, torch.full((3,), limit), silence=silence, epsilon=EPSILON)
        model = Bag(torch.tensor([NAN, 1.0]), torch.tensor([INF, 1.0]), torch.tensor([3.0, 4.0]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cpu, "available", lambda: False)
            clip_grad_norm_(model, limit, nonfinite="zero" if silence else "propagate")
        assert [str(tensor) for tensor in tensors] == [str(grad) for grad in model.grads]


@pytest.mark.usefixtures("threads")
def test_threads_share_the_tensors_and_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [70_000, 3, 0, 5000, 120_000, 9, 40_000]
    found = []
    for alone in (10**9, 1):
        monkeypatch.setattr(_threads, "_ALONE", alone)
        tensors = [drawn(size, seed=seed) for seed, size in enumerate(sizes)]
        norms = cpu.clip_(tensors, torch.full((len(sizes),), 0.1), silence=False, epsilon=EPSILON)
        found.append([bits(tensor) for tensor in (norms, cpu.norms(tensors), *tensors)])
    assert found[0] == found[1]


@pytest.mark.usefixtures("threads")
def test_a_forked_process_does_not_wait_for_threads_that_it_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_threads, "_ALONE", 1)
    tensors = [torch.tensor([3.0, 4.0])] * 4
    assert cpu.norms(tensors).tolist() == [5.0] * 4  # threads are there
    child = os.fork()
    if child == 0:  # pragma: no cover  the child of a test: it tells by its exit status alone
        os._exit(0 if cpu.norms(tensors).tolist() == [5.0] * 4 else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_autograd_is_told_of_what_changed() -> None:
    tensors = [torch.ones(2)]
    before = tensors[0]._version
    cpu.scale_(tensors, torch.tensor([0.5]))
    cpu.clip_(tensors, torch.tensor([0.1]), silence=False, epsilon=EPSILON)
    assert tensors[0]._version == before + 2


@pytest.mark.parametrize(
    ("tensor", "read"),
    [
        (torch.ones(2, 3), True),
        (nn.Parameter(torch.ones(2)), True),
        (torch.ones(0), True),
        (torch.ones(4, 3)[:, :2], False),
        (torch.ones(3, 2).t(), False),
        (torch.ones(1, 2).expand(2, 2), False),
        (torch.ones(2, dtype=torch.float64), False),
        (torch.ones(2, dtype=torch.bfloat16), False),
        (torch.ones(2, device="meta"), False),
    ],
)
def test_who_is_let_in(tensor: Tensor, read: bool) -> None:
    assert cpu.reads(tensor) is read


def test_a_mixed_model_takes_both_ways() -> None:
    grads = [drawn(30, 40), drawn(40, 30).t(), drawn(7).double(), drawn(5000).bfloat16(), drawn(2000)]
    model = Bag(*[grad.clone() for grad in grads])
    result = clip_grad_norm_(model, 0.5, nonfinite="error")
    assert result.norms.tolist() == pytest.approx([slow_norm(grad, 2.0) for grad in grads], rel=1e-6)
    for got, grad in zip(model.grads, grads, strict=True):
        assert got is not None
        wanted = grad.double() * 0.5 / slow_norm(grad, 2.0)
        torch.testing.assert_close(got.double(), wanted, rtol=4e-3 if got.dtype == torch.bfloat16 else 3e-6, atol=0)


@pytest.mark.slow
def test_without_numba_clipping_works() -> None:
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import torch, evenkeel\n"
        "from evenkeel.clipping.cpu import available\n"
        "model = torch.nn.Linear(2, 1); model(torch.ones(1, 2)).sum().backward()\n"
        "evenkeel.clip_grad_norm_(evenkeel.components(model), max_norm=0.5)\n"
        "print(available(), round(model.bias.grad.item(), 3))"
    )
    environment = {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "0.5"]


def test_a_tensor_of_zeros_that_are_nowhere_is_not_read() -> None:
    assert not cpu.reads(torch._efficientzerotensor(3))


def test_what_is_not_clipped_counts_as_unchanged() -> None:
    tensors = [torch.ones(2), torch.ones(2)]
    before = [tensor._version for tensor in tensors]
    cpu.clip_(tensors, torch.tensor([INF, 0.1]), silence=False, epsilon=EPSILON)
    assert [tensor._version - was for tensor, was in zip(tensors, before, strict=True)] == [0, 1]


@pytest.mark.slow
def test_a_thread_that_outlives_the_main_one_goes_on_alone() -> None:
    code = (
        "import threading, torch, evenkeel as ek\n"
        "from evenkeel.clipping.cpu import _threads\n"
        "torch.set_num_threads(2); _threads._ALONE = 1\n"
        "model = torch.nn.Sequential(torch.nn.Linear(20, 20), torch.nn.Linear(20, 20))\n"
        "main = threading.main_thread()\n"
        "def train():\n"
        "    main.join()\n"
        "    for p in model.parameters(): p.grad = torch.ones_like(p)\n"
        "    print(ek.clip_grad_norm_(ek.components(model), 1.0).norms.tolist()[0])\n"
        "threading.Thread(target=train).start()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["20.0"]
    assert done.stderr == ""


@pytest.mark.slow
def test_without_compiling_clipping_works() -> None:
    code = (
        "import torch, evenkeel\n"
        "model = torch.nn.Linear(2, 1); model(torch.ones(1, 2)).sum().backward()\n"
        "evenkeel.clip_grad_norm_(model, max_norm=0.5); print(round(model.bias.grad.item(), 3))"
    )
    environment = {"OMP_NUM_THREADS": "1", "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0.5"]
