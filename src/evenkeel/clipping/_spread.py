"""Norms of components whose entries lie on several ranks: one sum for each dimension of the mesh."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from evenkeel.clipping._plan import Plan
from evenkeel.clipping._stages import Stages

__all__ = ["join"]


def join(local: Tensor, plan: Plan, norm_type: float) -> tuple[Tensor, Tensor | None]:
    r"""Bring this rank's norms of slots together to norms of components, :math:`(\sum_s \lVert g_s\rVert^p)^{1/p}`.

    The p-th powers (for infinity the norms) of everything that is spread over a process group travel in one vector: one
    all-reduce for each group, and none for what lives whole on this rank.

    Args:
        local: this rank's norms, ``S`` slots; of gradients alone, or of gradients and weights: shape ``[R, S]``.
        plan: what the slots are.
        norm_type: order of the norm.

    Returns:
        The norms of ``C`` components, shape ``[R, C]``; and the norm of all components of all stages, shape ``[R]``,
        None where there are no stages.
    """
    if plan.alone:
        return local, None
    largest = norm_type == float("inf")
    # float64: the powers of float32 norms neither overflow nor vanish in it.
    powers = local.double() if largest else local.double() ** norm_type
    for group in dict.fromkeys(group for groups in plan.spread for group in groups):
        concerned = plan.index([slot for slot, groups in enumerate(plan.spread) if group in groups], powers.device)
        powers = powers.index_copy(1, concerned, _all_reduce(powers[:, concerned], group, largest=largest))
    owners = plan.index(plan.owners, powers.device).expand_as(powers)
    zeros = powers.new_zeros(len(powers), len(plan.names))
    sums = zeros.scatter_reduce(1, owners, powers, reduce="amax" if largest else "sum")
    whole = None
    if plan.stages is not None:
        sums, whole = _over_stages(sums, plan, plan.stages, largest=largest)
    root = 1.0 if largest else 1 / norm_type
    return (sums**root).to(local.dtype), None if whole is None else (whole**root).to(local.dtype)


def _over_stages(sums: Tensor, plan: Plan, stages: Stages, *, largest: bool) -> tuple[Tensor, Tensor]:
    """Sum what several stages have a part of and, as the last entry of the same vector, all the rest."""
    joined = plan.index([index for index, place in enumerate(stages.joined) if place is not None], sums.device)
    places = plan.index([place for place in stages.joined if place is not None], sums.device)

    def total(values: Tensor) -> Tensor:  # [R, any] -> [R, 1]; the largest of nothing is 0
        return torch.nn.functional.pad(values, (0, 1)).amax(1, keepdim=True) if largest else values.sum(1, keepdim=True)

    shared = sums.new_zeros(len(sums), stages.width).index_copy(1, places, sums[:, joined])
    vector = torch.cat([shared, total(sums.index_fill(1, joined, 0.0))], dim=1)
    vector = _all_reduce(vector, stages.group, largest=largest)
    return sums.index_copy(1, joined, vector[:, places]), total(vector).squeeze(1)


def _all_reduce(values: Tensor, group: ProcessGroup, *, largest: bool) -> Tensor:
    """Sum over a group's ranks, on a device that the group talks over: with offloading, gradients lie elsewhere."""
    served = [pair.partition(":")[0] for pair in dist.get_backend_config(group).split(",")]
    device = values.device if values.device.type in served else torch.device(served[0])
    if not largest:
        there = values.to(device, copy=True)
        dist.all_reduce(there, group=group)
        return there.to(values.device)
    # Backends differ in whether the larger of NaN and a number is NaN, so that NaN travels beside the numbers.
    unknown = values.isnan()
    there = torch.stack([values.masked_fill(unknown, 0.0), unknown.to(values.dtype)]).to(device)
    dist.all_reduce(there, op=dist.ReduceOp.MAX, group=group)
    return there[0].masked_fill(there[1] > 0, float("nan")).to(values.device)
