from __future__ import annotations

import math

import pytest
import torch
from tests import _ranks
from tests.clipping import _jobs
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from evenkeel.errors import ComponentError
from evenkeel.partition._shard import local_blocks, sharding_groups

ROWS_TWICE = [("shard", 0), ("shard", 0)]
STRIDED = [("strided", 0), ("shard", 0)]
BOTH = [("shard", 1), ("shard", 0)]
REPLICAS = [("replicate", 0), ("shard", 1)]


@pytest.mark.parametrize("shape", [(8, 3), (7, 2), (5, 5), (2, 4), (1, 1), (6, 2, 3)])
@pytest.mark.parametrize("placements", [ROWS_TWICE, STRIDED, BOTH, REPLICAS])
def test_the_blocks_of_all_ranks_are_the_tensor(shape: tuple[int, ...], placements: list[tuple[str, int]]) -> None:
    whole = torch.arange(math.prod(shape)).view(shape)
    found: list[int] = []
    for blocks in _ranks.run(4, _jobs.blocks_of, shape, placements):
        for begin, entries in blocks:
            block = torch.tensor(entries)
            where = tuple(slice(first, first + size) for first, size in zip(begin, block.shape, strict=True))
            assert torch.equal(block, whole[where])
            found += block.flatten().tolist()
    copies = 2 if placements == REPLICAS else 1
    assert sorted(found) == sorted(list(range(whole.numel())) * copies)


def test_strided_shards_are_several_blocks() -> None:
    blocks = _ranks.run(4, _jobs.blocks_of, (8, 1), [("strided", 0), ("replicate", 0)])
    assert [[begin for begin, _ in there] for there in blocks] == [[(0, 0), (4, 0)]] * 2 + [[(2, 0), (6, 0)]] * 2


@pytest.mark.usefixtures("group")
def test_a_local_tensor_that_is_not_what_the_placement_leaves_is_refused() -> None:
    mesh = init_device_mesh("cpu", (1,))
    odd = DTensor.from_local(torch.zeros(3, 2), mesh, [Shard(0)], shape=torch.Size([4, 2]), stride=(2, 1))
    with pytest.raises(ComponentError, match=r"entries of shape \(3, 2\), which is not what that placement leaves"):
        list(local_blocks(odd))


@pytest.mark.usefixtures("group")
def test_nothing_is_spread_over_one_rank() -> None:
    tensor = distribute_tensor(torch.zeros(4), init_device_mesh("cpu", (1,)), [Shard(0)])
    assert sharding_groups(tensor) == ()
    assert sharding_groups(torch.zeros(4)) == ()
