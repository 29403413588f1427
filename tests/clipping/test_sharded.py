"""Clipping on two ranks is clipping in one process."""

from __future__ import annotations

import pickle

import pytest
import torch
from tests import _ranks
from tests.clipping import _jobs, _layouts
from tests.clipping._sharded import assert_as_in_one_process, clips, threshold, traffic
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from evenkeel import clip_grad_norm_, components
from evenkeel.errors import GradientError

ONE = {(("c10d.allreduce_", 1),)}
NONE: set[tuple[tuple[str, int], ...]] = {()}


@pytest.mark.parametrize(
    ("layout", "name", "sent"),
    [
        ("ddp", "gpt2", NONE),
        ("fsdp2", "gpt2", ONE),
        pytest.param("fsdp2", "phi3", ONE, marks=pytest.mark.slow),
        ("fsdp2", "mixtral", ONE),
        ("fsdp1", "gpt2", ONE),
        pytest.param("fsdp1-grad-op", "mixtral", ONE, marks=pytest.mark.slow),
        ("fsdp1-flat", "phi3", ONE),
        ("fsdp1-no-shard", "gpt2", NONE),
        ("tp", "llama", ONE),
        # Of the norms' gradients every rank has a share; these are summed, all in one go.
        ("tp", "sequence", {(("c10d.allreduce_", 1), ("c10d_functional.all_reduce", 1))}),
    ],
)
def test_two_ranks_clip_as_one_process(layout: str, name: str, sent: set[tuple[tuple[str, int], ...]]) -> None:
    calls = clips(name)
    ranks = _ranks.run(2, _jobs.spread, layout, name, calls)
    assert_as_in_one_process(name, calls, ranks)
    assert traffic(ranks) == sent


# --- pipeline stages


@pytest.mark.parametrize("name", ["llama", "gpt2"])  # GPT-2's embedding is tied: both stages have it, one counts it
def test_stages_with_a_group_clip_as_one_process(name: str) -> None:
    calls = clips(name)[:6]
    ranks = _ranks.run(2, _jobs.staged, name, calls, True)
    assert_as_in_one_process(name, calls, ranks, whole=False)
    assert traffic(ranks) == ONE
    stages = [set(outcomes[0].gradients) for outcomes in ranks]
    assert stages[0] | stages[1] == set(_jobs.in_one_process(name, calls[0]).gradients)
    assert len(stages[0] & stages[1]) == (name == "gpt2")


def test_stages_without_a_group_send_nothing_and_speak_of_themselves() -> None:
    call = _jobs.Clip(max_norm=threshold("llama", "tensor", 2.0))
    ranks = _ranks.run(2, _jobs.staged, "llama", [call], False)
    assert traffic(ranks) == NONE
    want = _jobs.in_one_process("llama", call)
    for (got,) in ranks:
        index = [want.names.index(name) for name in got.names]
        torch.testing.assert_close(got.norms, want.norms[index], rtol=1e-9, atol=0)
        torch.testing.assert_close(got.total_norm, torch.linalg.vector_norm(got.norms), rtol=1e-12, atol=0)
        assert got.total_norm < want.total_norm


def test_a_budget_is_shared_among_all_stages() -> None:
    together = {name: share for stage in _ranks.run(2, _jobs.staged_budget, "gpt2") for name, share in stage.items()}
    parts = components(_layouts.build("gpt2"))
    assert together == pytest.approx({part.name: (part.size / parts.size) ** 0.5 for part in parts}, rel=1e-6)


def test_stages_that_call_different_parameters_by_one_name_are_refused() -> None:
    with pytest.raises(_ranks.RankError, match=r"ComponentError: one stage has a parameter 'weight' of shape \(1, 2\)"):
        _ranks.run(2, _jobs.other_stage)


# --- what some ranks have not


@pytest.mark.parametrize(("layout", "name"), [("fsdp2", "mixtral"), ("fsdp1", "gpt2"), ("tp", "llama")])
def test_ranks_without_gradients_take_part(layout: str, name: str) -> None:
    for zeros, missing in _ranks.run(2, _jobs.with_missing, layout, name):
        assert missing == zeros
        assert any(zeros)


@pytest.mark.parametrize(("layout", "name", "sent"), [("fsdp2", "gpt2", 1), ("fsdp1", "phi3", 1), ("ddp", "gpt2", 0)])
def test_norms_of_weights_travel_with_those_of_gradients(layout: str, name: str, sent: int) -> None:
    weights = [
        _jobs.norm([view.detach() for piece in part.pieces for view in piece.of(piece.tensor())], 2.0)
        for part in components(_layouts.build(name))
    ]
    for thresholds, messages in _ranks.run(2, _jobs.by_weights, layout, name, 0.01):
        assert thresholds == pytest.approx([0.01 * max(weight, 1e-3) for weight in weights], rel=1e-9)
        assert sum(messages.values()) == sent


# --- gradients of odd kinds, on one rank


def _sharded_parameter() -> tuple[nn.Module, DTensor]:
    model = nn.Linear(3, 2, bias=False)
    where = init_device_mesh("cpu", (1,))
    model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), where, [Shard(0)]))
    return model, DTensor.from_local(torch.ones(1, 1).expand(2, 3), where, [Shard(0)])


@pytest.mark.usefixtures("group")
def test_a_sharded_gradient_whose_entries_share_memory_is_clipped() -> None:
    model, grad = _sharded_parameter()
    model.weight.grad = grad
    result = clip_grad_norm_(model, 1.0)
    assert result.norms.tolist() == pytest.approx([6**0.5])
    assert isinstance(model.weight.grad, DTensor)
    torch.testing.assert_close(model.weight.grad.full_tensor(), torch.full((2, 3), 6**-0.5))


@pytest.mark.usefixtures("group")
def test_a_sharded_gradient_of_a_plain_parameter_is_refused() -> None:
    _, grad = _sharded_parameter()
    model = nn.Linear(3, 2, bias=False)
    model.weight.grad = grad
    with pytest.raises(GradientError, match="make both DTensors, or both plain tensors"):
        clip_grad_norm_(model, 1.0)


# --- components of wrapped models


@pytest.mark.parametrize("layout", ["fsdp1", "fsdp1-flat", "fsdp1-no-shard", "fsdp2"])
def test_wrapping_changes_no_component(layout: str) -> None:
    for name in ("gpt2", "mixtral"):
        parts = components(_layouts.build(name))
        ranks = _ranks.run(2, _jobs.found_again, layout, name, pickle.dumps(parts))
        for found, bound, _ in ranks:
            assert found == bound == parts
        entries = [sum(here) for here in zip(*[here for _, _, here in ranks], strict=True)]
        copies = 2 if layout == "fsdp1-no-shard" else 1
        assert entries == [copies * part.size for part in parts]


def test_components_found_before_fsdp1_wrapped_the_model_are_refused() -> None:
    for error in _ranks.run(2, _jobs.found_before, "fsdp1-flat", "llama"):
        assert error.startswith("ComponentError: 'model.")
        assert "wrapped" in error
        assert "call evenkeel.components(model) again" in error


def test_components_found_before_fsdp2_sharded_the_model_are_refused() -> None:
    for error in _ranks.run(2, _jobs.found_before, "fsdp2", "llama"):
        assert error.startswith("GradientError: none of the")
        assert "found after it was wrapped or sharded" in error


def test_parameters_that_fsdp1_hides_are_refused() -> None:
    for errors in _ranks.run(2, _jobs.hidden, "llama"):
        for error in errors:
            assert error.startswith("ComponentError: parameter '")
            assert "use_orig_params=True" in error


# --- ranks themselves


@pytest.mark.slow
def test_a_failure_on_a_rank_is_told_with_its_rank_and_place() -> None:
    with pytest.raises(_ranks.RankError, match=r"(?s)--- rank 1 of 2\n.*in fail_on.*ValueError: as asked"):
        _ranks.run(2, _jobs.fail_on, 1)
    assert _ranks.run(2, _jobs.fail_on, 2) == [0, 1]  # new ranks do the next job
