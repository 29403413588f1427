"""Clipping on four ranks is clipping in one process: two dimensions, several meshes, shares that are empty."""

from __future__ import annotations

import pytest
from tests import _ranks
from tests.clipping import _jobs, _layouts
from tests.clipping._sharded import assert_as_in_one_process, clips, traffic

pytestmark = pytest.mark.slow  # four ranks on two cores

SUM, MOVED = "c10d.allreduce_", "c10d_functional.all_reduce"


@pytest.mark.parametrize(
    ("layout", "name", "sums"),
    [
        ("fsdp2", "gpt2", 1),
        ("fsdp2", "mixtral", 1),
        ("hsdp", "phi3", 1),
        ("fsdp1", "mixtral", 1),
        ("fsdp1-hybrid", "gpt2", 1),
        ("fsdp2-tp", "llama", 2),
        ("fsdp2-tp", "sequence", 2),
    ],
)
def test_four_ranks_clip_as_one_process(layout: str, name: str, sums: int) -> None:
    calls = clips(name)
    ranks = _ranks.run(4, _jobs.spread, layout, name, calls)
    assert_as_in_one_process(name, calls, ranks)
    assert traffic(ranks) == {((SUM, sums),)}


@pytest.mark.parametrize(
    ("rule", "name", "sent"),
    [
        ("columns", "gpt2", {SUM: 1}),
        ("rows-twice", "phi3", {SUM: 2}),
        ("strided", "phi3", {SUM: 2}),
        ("strided", "mixtral", {SUM: 2}),
        ("experts", "mixtral", {SUM: 3}),  # two dimensions of one mesh, one of another; vectors are plain
        ("partial", "gpt2", {MOVED: 1}),
        ("shard-partial", "phi3", {SUM: 1, MOVED: 1}),
        ("replicate-shard", "gpt2", {SUM: 1}),
    ],
)
def test_parameters_placed_by_hand_are_clipped_as_in_one_process(rule: str, name: str, sent: dict[str, int]) -> None:
    calls = clips(name)
    ranks = _ranks.run(4, _jobs.placed, rule, name, calls)
    assert_as_in_one_process(name, calls, ranks)
    assert traffic(ranks) == {tuple(sorted(sent.items()))}


def test_shares_of_a_sum_whose_parameter_is_sharded_are_summed_and_clipped() -> None:
    calls = clips("gpt2")[:3]
    assert_as_in_one_process("gpt2", calls, _ranks.run(4, _jobs.placed, "partial-shard", "gpt2", calls))


def test_fused_tensors_that_both_fsdp2_and_tensor_parallelism_cut_are_clipped_as_in_one_process() -> None:
    calls = clips("phi3")
    ranks = _ranks.run(4, _jobs.given, "phi3", calls)
    assert_as_in_one_process("phi3", calls, ranks)
    assert traffic(ranks) == {((SUM, 2),)}


def test_sharded_stages_clip_as_one_process() -> None:
    calls = clips("gpt2")[:6]
    ranks = _ranks.run(4, _jobs.staged, "gpt2", calls, True)
    assert_as_in_one_process("gpt2", calls, ranks, whole=False)
    assert traffic(ranks) == {((SUM, 2),)}


@pytest.mark.parametrize("layout", ["fsdp2", "hsdp", "fsdp1-flat"])
def test_one_rank_of_four_without_gradients_takes_part(layout: str) -> None:
    for zeros, missing in _ranks.run(4, _jobs.with_missing, layout, "mixtral"):
        assert missing == zeros


@pytest.mark.slow
@pytest.mark.parametrize("name", list(_layouts.MODELS))
@pytest.mark.parametrize("layout", list(_layouts.LAYOUTS))
def test_every_layout_of_every_model_clips_as_one_process(layout: str, name: str) -> None:
    if "tp" in layout and name not in ("llama", "sequence"):
        pytest.skip("there is no plan for tensor parallelism of this architecture")
    calls = clips(name, full=True)
    ranks = 2 if (layout, name) == ("tp", "llama") else 4  # it has two heads
    assert_as_in_one_process(name, calls, _ranks.run(ranks, _jobs.spread, layout, name, calls))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(_layouts.MODELS))
@pytest.mark.parametrize("rule", list(_layouts.RULES))
def test_every_rule_for_every_model_clips_as_one_process(rule: str, name: str) -> None:
    calls = clips(name, full=True)
    assert_as_in_one_process(name, calls, _ranks.run(4, _jobs.placed, rule, name, calls))
