"""torchtitan's own clipping and ours on the same sharded gradients, as torchrun starts it: ``_titan.py``."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from tests import _models
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torchtitan.distributed.utils import clip_grad_norm_ as theirs

import evenkeel as ek

ROWS = _models.Rows(8)


def sharded(mesh: DeviceMesh) -> nn.Module:
    """A model that ``fully_shard`` spreads over the mesh, with the gradients of this rank's rows."""
    model = _models.bert()
    for block in model.bert.encoder.layer:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    ids = ROWS.ids[dist.get_rank() * 4 : dist.get_rank() * 4 + 4]
    model(input_ids=ids, labels=ids[:, 0] % 2).loss.backward()
    return model


def same(one: Iterable[Tensor], other: Iterable[Tensor]) -> None:
    for mine, their in zip(one, other, strict=True):
        assert (mine.grad is None) == (their.grad is None)
        if mine.grad is not None:
            pair = [grad.full_tensor() if isinstance(grad, DTensor) else grad for grad in (mine.grad, their.grad)]
            torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-8)


def by_shards() -> None:
    """All as one component is their clipping; each on its own is theirs in a loop over parameters."""
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("fsdp",))
    mine, other = sharded(mesh), sharded(mesh)
    assert all(isinstance(one, DTensor) for one in mine.parameters())
    norm = theirs(other.parameters(), 0.1, foreach=True)
    result = ek.clip_grad_norm_(ek.components(mine, by="global"), 0.1)
    torch.testing.assert_close(result.total_norm, norm, rtol=1e-5, atol=0, check_dtype=False)
    assert norm > 0.1  # so that it was clipped
    same(mine.parameters(), other.parameters())
    mine, other = sharded(mesh), sharded(mesh)
    for parameter in other.parameters():
        theirs([parameter], 0.02, foreach=True)
    result = ek.clip_grad_norm_(ek.components(mine), 0.02)
    assert 0 < int((result.coefficients < 1).sum()) < len(result.names)
    same(mine.parameters(), other.parameters())


def by_stages() -> None:
    """With their ``pp_mesh`` and our ``group`` the norm is that of all stages."""
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("pp",))
    torch.manual_seed(dist.get_rank())
    stages = [nn.ModuleDict({f"stage{dist.get_rank()}": nn.Linear(4, 4)}) for _ in range(2)]
    steps = [torch.randn_like(one) for one in stages[0].parameters()]
    for stage in stages:
        for parameter, step in zip(stage.parameters(), steps, strict=True):
            parameter.grad = step.clone()
    norm = theirs(stages[1].parameters(), 0.1, foreach=True, pp_mesh=mesh)
    parts = ek.components(stages[0], by="global")
    result = ek.clip_grad_norm_(parts, 0.1, group=mesh.get_group())
    torch.testing.assert_close(result.total_norm, norm, rtol=1e-5, atol=0, check_dtype=False)
    same(stages[0].parameters(), stages[1].parameters())


if __name__ == "__main__":
    dist.init_process_group("gloo")
    by_shards()
    by_stages()
    if dist.get_rank() == 0:
        print("both alike")
    dist.destroy_process_group()
