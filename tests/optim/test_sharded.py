"""Two ranks give the weights of one process, whichever way they clip and step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests import _ranks
from tests._tiers import few
from tests.optim import _jobs, _runs

WAYS = ["clipped adamw", "in backward", "any optimizer"]


@pytest.mark.parametrize("steps", [4, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("model", "limit", "by"),
    [
        ("bert", "number", "tensor"),
        ("bert", "percentile", "layer"),
        pytest.param("llama", "number", "global", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
@pytest.mark.parametrize("how", WAYS)
def test_two_ranks_are_one_process(how: str, wrapper: str, model: str, limit: str, by: Any, steps: int) -> None:
    if how == "in backward" and wrapper == "ddp" and by != "tensor":
        pytest.skip("components alone do not say that DDP reduces their gradients")
    wanted = _jobs.alone(model, limit, by, steps)
    for weights, kind in _ranks.run(2, _jobs.trained, model, wrapper, how, limit, by, steps):
        assert kind == ("DTensor" if wrapper == "fsdp2" else "Parameter")
        _runs.assert_alike(weights, wanted, tolerance=1e-5 if steps < 10 else 2e-4)


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
@pytest.mark.parametrize(
    ("model", "how", "by"),
    [
        ("bert", "clipped adamw", "layer"),
        *(pytest.param("bert", how, "tensor", marks=pytest.mark.slow) for how in WAYS),
        *(pytest.param(model, "clipped adamw", "tensor", marks=pytest.mark.slow) for model in ("gpt2", "mixtral")),
    ],
)
def test_steps_are_limited_as_in_one_process(wrapper: str, model: str, how: str, by: Any) -> None:
    steps = 4
    weights, coefficients = _jobs.limited(model, how, by, 3e-3, steps)
    assert min(min(step) for step in coefficients) < 0.9
    for found, seen in _ranks.run(2, _jobs.limited, model, how, by, 3e-3, steps, wrapper):
        _runs.assert_alike(found, weights, tolerance=1e-5)
        for mine, theirs in zip(seen, coefficients, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("model", ["gpt2", "mixtral"])
def test_cut_tensors_and_experts_that_see_no_token(how: str, model: str) -> None:
    wanted = _jobs.alone(model, "number", "tensor", 20)
    for weights, _ in _ranks.run(2, _jobs.trained, model, "fsdp2", how, "number", "tensor", 20):
        _runs.assert_alike(weights, wanted, tolerance=1e-4)


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_micro_steps_are_accumulated(wrapper: str) -> None:
    wanted = _jobs.alone("bert", "number", "tensor", 3)
    for weights in _ranks.run(2, _jobs.accumulated, wrapper):
        _runs.assert_alike(weights, wanted, tolerance=1e-5)


@pytest.mark.parametrize("how", few(["clip, then step", "clipped adamw", "any optimizer"], ["clipped adamw"]))
def test_a_loss_scaler_skips_on_all_ranks_what_overflows_on_one(how: str) -> None:
    ((wanted, kept, seen),) = _ranks.run(1, _jobs.scaled, how, 2)
    assert kept == [True, True, False, True, True, True]
    assert seen == {"DTensor", "torch.float16"}
    wanted = {name: weights for name, weights in wanted.items() if "key.bias" not in name}  # moved by rounding alone
    for weights, same, kinds in _ranks.run(2, _jobs.scaled, how, 2):
        assert (same, kinds) == (kept, seen)
        _runs.assert_alike(weights, wanted, tolerance=2e-4)  # float16 rounds shares of a batch otherwise
    (unspoilt, *_), _ = _ranks.run(2, _jobs.scaled, how, -1)
    assert max((unspoilt[name] - wanted[name]).abs().max() for name in wanted) > 5e-4


def test_components_of_a_replicated_model_are_refused_in_backward() -> None:
    for said in _ranks.run(2, _jobs.refused):
        assert "2 ranks train" in said
        assert "pass the model itself" in said


def test_norms_take_one_reduction_a_step_and_in_backward_one_a_component() -> None:
    for counts in _ranks.run(2, _jobs.traffic, "clipped adamw"):
        assert sum(number for kind, number in counts.items() if "allreduce" in kind) == 1
    for counts in _ranks.run(2, _jobs.traffic, "in backward"):
        assert sum(number for kind, number in counts.items() if "allreduce" in kind) == counts["components"]


def test_one_process_is_what_it_is_compared_with() -> None:
    first, again = (_jobs.alone("bert", "number", "tensor", 2) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
