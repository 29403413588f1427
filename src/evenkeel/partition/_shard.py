"""Where the entries of this rank's shard lie in the whole tensor."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from evenkeel.errors import ComponentError

__all__ = ["local_shard"]


def local_shard(tensor: DTensor) -> tuple[Tensor, tuple[int, ...]]:
    """Return this rank's entries of a sharded tensor, and where they begin in the whole.

    Args:
        tensor: a tensor that is sharded or replicated along each dimension of its mesh.

    Returns:
        The local tensor, without communication, and its offset in every dimension.

    Raises:
        ComponentError: if the entries of this rank are no block (strided shards, partial sums).
    """
    offsets = [0] * tensor.dim()
    sizes = list(tensor.shape)
    coordinate: Sequence[int] = tensor.device_mesh.get_coordinate() or ()
    for ranks, rank, placement in zip(tensor.device_mesh.shape, coordinate, tensor.placements, strict=False):
        if type(placement) is Shard:  # as torch.chunk cuts: the last ranks may have less, or nothing
            length = sizes[placement.dim]
            chunk = -(-length // ranks)
            start = min(rank * chunk, length)
            offsets[placement.dim] += start
            sizes[placement.dim] = min(chunk, length - start)
        elif not isinstance(placement, Replicate):
            raise ComponentError(
                f"a tensor of shape {tuple(tensor.shape)} is placed as {placement} on its mesh, so that this rank's "
                "entries are no block of it; redistribute it to Shard or Replicate first"
            )
    return tensor.to_local(), tuple(offsets)
