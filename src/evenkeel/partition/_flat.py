"""FSDP1, where a rank holds a parameter as a flat run of its entries; the one file that knows its private parts."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from evenkeel.errors import ComponentError
from evenkeel.partition._shard import Block

__all__ = ["FlatShard", "flat_shards"]


@dataclass(frozen=True, kw_only=True)
class FlatShard:
    """The run of a parameter's entries, in the order of its memory, that this rank holds.

    Attributes:
        shape: shape of the whole parameter.
        start: the first entry that this rank holds.
        stop: one more than the last.
        rowwise: whether the order of memory is that of the indices, the last of them the fastest.
        groups: the ranks that hold the other runs.
    """

    shape: tuple[int, ...]
    start: int
    stop: int
    rowwise: bool = True
    groups: tuple[ProcessGroup, ...] = field(default=(), repr=False)

    def blocks(self, flat: Tensor) -> Iterator[Block]:
        """Yield the run as boxes of the whole parameter: what is left of a row, whole rows, what begins a row.

        Args:
            flat: the entries of this rank, one-dimensional.

        Yields:
            Views of ``flat``, and where each begins in the whole.

        Raises:
            ComponentError: if the entries are stored in another order than that of the indices.

        Example:
            >>> shard = FlatShard(shape=(3, 4), start=3, stop=10)
            >>> [(view.tolist(), begin) for view, begin in shard.blocks(torch.arange(3, 10))]
            [([[3]], (0, 3)), ([[4, 5, 6, 7]], (1, 0)), ([[8, 9]], (2, 0))]
        """
        if not self.rowwise:
            raise ComponentError(
                f"a parameter of shape {self.shape} was not contiguous when FullyShardedDataParallel flattened it, so "
                "that its parts cannot be told apart; call .contiguous() on it before wrapping, or use "
                "torch.distributed.fsdp.fully_shard"
            )
        for start, begin, size in _boxes(self.shape, self.start, self.stop):
            place = start - self.start
            yield flat[place : place + math.prod(size)].view(size), begin


def _boxes(shape: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """Yield flat start, indices of the first entry, and shape of the boxes that a flat run consists of, in order."""
    if start >= stop:
        return
    if len(shape) == 1 or not shape:
        yield start, (start,) * len(shape), (stop - start,) * len(shape)
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row  # whole rows
    if first > last:  # within one row
        yield from _within_row(shape, last, start, stop)
        return
    yield from _within_row(shape, first - 1, start, first * row)
    if first < last:
        yield first * row, (first, *[0] * (len(shape) - 1)), (last - first, *shape[1:])
    yield from _within_row(shape, last, last * row, stop)


def _within_row(
    shape: Sequence[int], row: int, start: int, stop: int
) -> Iterator[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    before = row * math.prod(shape[1:])
    for place, begin, size in _boxes(shape[1:], start - before, stop - before):
        yield before + place, (row, *begin), (1, *size)


def flat_shards(model: nn.Module) -> dict[int, FlatShard]:
    """Find the parameters that FSDP1 (``FullyShardedDataParallel``) holds as flat runs.

    Args:
        model: any module.

    Returns:
        This rank's run by the ``id`` of the parameter; empty without FSDP1, and where it shards nothing.

    Raises:
        ComponentError: if this version of torch keeps them otherwise, or they were sharded before.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")  # what was never imported wraps nothing
    if fsdp is None:
        return {}
    found: dict[int, FlatShard] = {}
    for module in fsdp.FullyShardedDataParallel.fsdp_modules(model):
        try:
            found.update(_of_module(module))
        except AttributeError as error:
            raise ComponentError(
                f"FullyShardedDataParallel keeps its parameters in another way in torch {torch.__version__} than in "
                f"the versions known here ({error}); use torch.distributed.fsdp.fully_shard instead"
            ) from error
    return found


def _of_module(module: Any) -> Iterator[tuple[int, FlatShard]]:
    handle = module._handle
    if handle is None or not module._use_orig_params:  # no parameters of its own, or none that are the model's
        return
    flat = handle.flat_param
    if any(extension is not None for extension in flat._param_extensions):
        raise ComponentError(
            "FullyShardedDataParallel wraps parameters that are sharded already (DTensor), and what lies where cannot "
            "be told; use torch.distributed.fsdp.fully_shard, which combines with tensor parallelism"
        )
    if not handle.uses_sharded_strategy:  # NO_SHARD: the parameters are whole, as with DDP
        return
    groups = (handle.process_group,) if handle.process_group.size() > 1 else ()
    for parameter, shape, contiguous, info in zip(
        flat._params, flat._shapes, flat._contiguities, flat._shard_param_infos, strict=True
    ):
        start, stop = (info.intra_param_start_idx, info.intra_param_end_idx + 1) if info.in_shard else (0, 0)
        yield (
            id(parameter),
            FlatShard(shape=tuple(shape), start=start, stop=stop, rowwise=bool(contiguous), groups=groups),
        )
