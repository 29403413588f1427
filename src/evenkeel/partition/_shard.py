"""Over which ranks a tensor is spread, and where the entries of this rank's shard lie in the whole."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor, Placement

from evenkeel.errors import ComponentError

__all__ = ["Block", "local_blocks", "sharding_groups"]

# A box of the whole tensor that lies on this rank: a view of it, and where it begins in every dimension.
Block = tuple[Tensor, tuple[int, ...]]


def sharding_groups(tensor: Tensor) -> tuple[ProcessGroup, ...]:
    """Return the process groups whose ranks hold different entries of ``tensor``.

    Args:
        tensor: any tensor.

    Returns:
        One group for each dimension of its mesh along which it is sharded over more than one rank.
    """
    if not isinstance(tensor, DTensor) or tensor.device_mesh.get_coordinate() is None:
        return ()
    mesh = tensor.device_mesh
    return tuple(
        mesh.get_group(dim)
        for dim, placement in enumerate(tensor.placements)
        if _sharded_dim(placement) is not None and mesh.size(dim) > 1
    )


def local_blocks(tensor: DTensor) -> Iterator[Block]:
    """Yield this rank's entries of a sharded tensor as boxes of the whole, without communication.

    Several where FSDP shards what tensor parallelism has sharded along the same dimension (strided shards); none on a
    rank whose share is empty. Partial sums lie where replicas would lie.

    Args:
        tensor: a tensor on a mesh of devices.

    Yields:
        Views of the local tensor, and where each begins in the whole.

    Raises:
        ComponentError: if the local tensor is not what the placements say.
    """
    local = tensor.to_local()
    if not local.numel():
        return
    runs = [[range(length)] for length in tensor.shape]  # along every dimension
    coordinate: Sequence[int] = tensor.device_mesh.get_coordinate() or ()
    for ranks, rank, placement in zip(tensor.device_mesh.shape, coordinate, tensor.placements, strict=False):
        dim = _sharded_dim(placement)
        if dim is not None:
            runs[dim] = _share(runs[dim], ranks, rank, groups=int(getattr(placement, "split_factor", 1)))
    if local.shape != tuple(sum(map(len, along)) for along in runs):
        raise ComponentError(
            f"a tensor of shape {tuple(tensor.shape)} is placed as {tensor.placements}, but this rank has entries of "
            f"shape {tuple(local.shape)}, which is not what that placement leaves here, so that the tensor's parts "
            "cannot be told apart; use lengths that the mesh divides, or a partition that keeps the tensor whole"
        )
    for choice in itertools.product(*map(_placed, runs)):
        view = local
        for dim, (place, run) in enumerate(choice):
            view = view.narrow(dim, place, len(run))
        yield view, tuple(run.start for _, run in choice)


def _sharded_dim(placement: Placement) -> int | None:
    """Return the dimension that a placement shards; torch's strided shards are no ``Shard`` in every version."""
    return None if placement.is_replicate() or placement.is_partial() else int(getattr(placement, "dim"))  # noqa: B009


def _share(runs: list[range], ranks: int, rank: int, *, groups: int) -> list[range]:
    """Cut each of ``groups`` chunks among the ranks, as torch does for strided shards; plain ones have one group."""
    shares = [_chunk(_chunk(runs, groups, group), ranks, rank) for group in range(groups)]
    return [run for share in shares for run in share]


def _chunk(runs: list[range], number: int, index: int) -> list[range]:
    """Cut as ``torch.chunk`` cuts: the last chunks may have less, or nothing."""
    size = -(-sum(map(len, runs)) // number)
    cut = [run[max(0, index * size - place) : max(0, (index + 1) * size - place)] for place, run in _placed(runs)]
    return [run for run in cut if run]


def _placed(runs: list[range]) -> list[tuple[int, range]]:
    """Say where each run begins among the entries of this rank."""
    starts = itertools.accumulate(map(len, runs), initial=0)
    return list(zip(starts, runs, strict=False))
