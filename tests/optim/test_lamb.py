"""Lamb is the paper's algorithm 2 with its published code's exceptions, and Adam where nothing is rescaled."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from tests.clipping.thresholds._drive import NoSynchronisation
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, distribute_tensor

from evenkeel.errors import OptimizerError
from evenkeel.optim import Lamb

NAN = math.nan


def twin(
    weight: Tensor,
    grads: Sequence[Tensor],
    *,
    lr: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    decay: float = 0.01,
    most: float = math.inf,
    vectors: bool = False,
) -> tuple[Tensor, list[float]]:
    """The algorithm as it is printed, in float64; also the ratio of every step."""
    x = weight.detach().double()
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    ratios = []
    for step, grad in enumerate(grads, start=1):
        m = betas[0] * m + (1 - betas[0]) * grad.double()
        v = betas[1] * v + (1 - betas[1]) * grad.double() ** 2
        direction = (m / (1 - betas[0] ** step)) / ((v / (1 - betas[1] ** step)).sqrt() + eps) + decay * x
        own, theirs = (math.sqrt(sum(entry**2 for entry in one.flatten().tolist())) for one in (x, direction))
        ratio = min(own / theirs, most) if own and theirs and (vectors or x.ndim > 1) else 1.0
        x = x - lr * ratio * direction
        ratios.append(ratio)
    return x, ratios


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def stepped(optimizer: Lamb, weight: Tensor, grads: Sequence[Tensor]) -> list[float]:
    found = []
    for grad in grads:
        weight.grad = grad.clone()
        optimizer.step()
        found.append(optimizer.ratios[weight].item())
    return found


@given(
    shape=st.lists(st.integers(1, 5), max_size=3),
    seed=st.integers(0, 99),
    scale=st.sampled_from([1e-6, 1.0, 1e3]),
    decay=st.sampled_from([0.0, 0.1]),
    most=st.sampled_from([None, 0.5, 1.0]),
    vectors=st.booleans(),
    foreach=st.sampled_from([None, True, False]),
)
def test_it_is_the_papers_algorithm(
    shape: list[int], seed: int, scale: float, decay: float, most: float | None, vectors: bool, foreach: bool | None
) -> None:
    weight = nn.Parameter(drawn(*shape, seed=seed, dtype=torch.float64))
    grads = [scale * drawn(*shape, seed=seed + step, dtype=torch.float64) for step in range(1, 5)]
    wanted, ratios = twin(weight, grads, decay=decay, most=most or math.inf, vectors=vectors)
    optimizer = Lamb([weight], lr=0.1, weight_decay=decay, max_ratio=most, vectors=vectors, foreach=foreach)
    assert stepped(optimizer, weight, grads) == pytest.approx(ratios, rel=1e-9)
    torch.testing.assert_close(weight.detach(), wanted, rtol=1e-9, atol=1e-12)


def test_vectors_take_the_step_of_adamw_but_for_where_decay_stands() -> None:
    ours, theirs = (nn.Parameter(drawn(7)) for _ in range(2))
    grads = [drawn(7, seed=step) for step in range(3)]
    assert stepped(Lamb([ours], lr=0.1, weight_decay=0.0), ours, grads) == [1.0, 1.0, 1.0]
    plain = torch.optim.AdamW([theirs], lr=0.1, eps=1e-6, weight_decay=0.0)
    for grad in grads:
        theirs.grad = grad
        plain.step()
    torch.testing.assert_close(ours, theirs)


def test_a_step_is_as_long_as_the_rates_share_of_the_weights() -> None:
    weight = nn.Parameter(drawn(30, 20))
    before = weight.detach().clone()
    stepped(Lamb([weight], lr=0.05), weight, [1e4 * drawn(30, 20, seed=1)])
    assert (weight - before).norm().item() == pytest.approx(0.05 * before.norm().item(), rel=1e-5)


@pytest.mark.parametrize("grad", [0.0, 1.0])
def test_weights_or_directions_of_zero_are_not_rescaled(grad: float) -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    assert stepped(Lamb([weight], lr=0.1), weight, [torch.full((2, 2), grad)]) == [1.0]
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), -0.1 * grad))


def test_many_tensors_together_are_each_alone() -> None:
    together = [nn.Parameter(drawn(3, 4, seed=seed)) for seed in range(4)]
    alone = [nn.Parameter(weight.detach().clone()) for weight in together]
    one, several = Lamb(together, lr=0.1), [Lamb([weight], lr=0.1) for weight in alone]
    for step in range(3):
        for seed, weight in enumerate([*together, *alone]):
            weight.grad = drawn(3, 4, seed=10 * step + seed % 4)
        for optimizer in (one, *several):
            optimizer.step()
    torch.testing.assert_close(together, alone)


def test_a_nan_stays_in_its_tensor_and_what_has_no_gradient_stays() -> None:
    sick, well, idle = (nn.Parameter(drawn(2, 2, seed=seed)) for seed in range(3))
    before = idle.detach().clone()
    sick.grad, well.grad = torch.full((2, 2), NAN), torch.ones(2, 2)
    Lamb([sick, well, idle]).step()
    assert sick.isnan().all()
    assert well.isfinite().all()
    assert torch.equal(idle, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_are_updated_in_float32(dtype: torch.dtype) -> None:
    weight = nn.Parameter(drawn(8, 8, dtype=dtype))
    grads = [drawn(8, 8, seed=1, dtype=dtype)]
    wanted, ratios = twin(weight, grads)
    assert stepped(Lamb([weight], lr=0.1), weight, grads) == pytest.approx(ratios, rel=1e-5)
    torch.testing.assert_close(weight.detach(), wanted.to(dtype), rtol=1e-2, atol=1e-2)


def test_nothing_waits_for_the_device() -> None:
    weight, bias = nn.Parameter(drawn(3, 3)), nn.Parameter(drawn(3))
    optimizer = Lamb([weight, bias], lr=0.1, max_ratio=1.0)
    weight.grad, bias.grad = drawn(3, 3, seed=1), drawn(3, seed=2)
    optimizer.step()
    with NoSynchronisation():
        weight.grad, bias.grad = drawn(3, 3, seed=3), drawn(3, seed=4)
        optimizer.step()


def test_a_state_goes_on_elsewhere_bit_for_bit() -> None:
    weight = nn.Parameter(drawn(3, 3))
    optimizer = Lamb([weight], lr=0.1, max_ratio=2.0)
    stepped(optimizer, weight, [drawn(3, 3, seed=1)])
    other = nn.Parameter(weight.detach().clone())
    second = Lamb([other], lr=0.5)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    grads = [drawn(3, 3, seed=2)]
    assert stepped(optimizer, weight, grads) == stepped(second, other, grads)
    assert torch.equal(weight, other)
    assert pickle.loads(pickle.dumps(second)).param_groups[0]["max_ratio"] == 2.0  # noqa: S301  our own


def test_a_closure_and_uphill() -> None:
    weight = nn.Parameter(torch.ones(2, 2))

    def closure() -> Tensor:
        weight.grad = torch.ones(2, 2)
        return weight.sum()

    optimizer = Lamb([weight], lr=torch.tensor([0.1]), weight_decay=0.0, maximize=True)
    assert optimizer.step(closure).item() == 4.0
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), 1.1))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lr": -1.0}, "lr=-1.0, but a learning rate is 0 or more"),
        ({"lr": NAN}, "lr=nan"),
        ({"lr": torch.ones(2)}, "a group has one"),
        ({"betas": (1.0, 0.9)}, "two numbers from 0 to below 1"),
        ({"betas": (0.9,)}, "two numbers from 0 to below 1"),
        ({"eps": 0.0}, "small positive number"),
        ({"weight_decay": -0.1}, "a decay is 0 or more"),
        ({"max_ratio": 0.0}, "None for no bound"),
        ({"max_ratio": NAN}, "None for no bound"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], said: str) -> None:
    weight = nn.Parameter(torch.ones(1))
    with pytest.raises(OptimizerError, match=said):
        Lamb([weight], **settings)
    with pytest.raises(OptimizerError, match=said):
        Lamb([{"params": [weight], **settings}])
    optimizer = Lamb([weight])
    state = optimizer.state_dict()
    state["param_groups"][0].update(settings)
    with pytest.raises(OptimizerError, match=said):
        optimizer.load_state_dict(state)


def test_gradients_that_cannot_be_are_refused_before_anything_changes() -> None:
    first = nn.Parameter(torch.ones(2, 2))
    for weight, grad, said in (
        (nn.Parameter(torch.ones(2, 2)), torch.ones(2, 2).to_sparse(), "sparse gradient, of a parameter of shape"),
        (nn.Parameter(torch.ones(2, dtype=torch.cfloat)), torch.ones(2, dtype=torch.cfloat), "complex gradient"),
    ):
        first.grad, weight.grad = torch.ones(2, 2), grad
        with pytest.raises(OptimizerError, match=said):
            Lamb([first, weight]).step()
        assert torch.equal(first, torch.ones(2, 2))


def test_sharded_parameters_are_refused(tmp_path: Any) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        weight = nn.Parameter(distribute_tensor(torch.ones(2, 2), mesh, [Replicate()]))
        weight.grad = distribute_tensor(torch.ones(2, 2), mesh, [Replicate()])
        with pytest.raises(OptimizerError, match="sharded parameter, of shape"):
            Lamb([weight]).step()
    finally:
        dist.destroy_process_group()
