"""Which entries of a tensor a component owns, as evenly spaced runs along its dimensions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Span", "shard_views", "views"]


@dataclass(frozen=True, kw_only=True)
class Span:
    """Evenly spaced runs of indices along one dimension.

    The indices are ``start + stride * i + j`` for ``0 <= i < count`` and ``0 <= j < length``: one run for a
    contiguous part, one run a head for interleaved heads, runs of length 1 for interleaved columns.

    Attributes:
        dim: the dimension, not negative.
        start: first index.
        length: indices in a run.
        stride: from one run's first index to the next one's; at least ``length``.
        count: number of runs.
    """

    dim: int
    start: int
    length: int
    stride: int
    count: int = 1

    @property
    def size(self) -> int:
        """Number of indices."""
        return self.length * self.count

    @property
    def stop(self) -> int:
        """One more than the last index."""
        return self.start + self.stride * (self.count - 1) + self.length

    def within(self, start: int, stop: int) -> tuple[Span, ...]:
        """Return what of this lies in a shard that holds the indices from ``start`` up to ``stop``, counted from there.

        Args:
            start: first index of the shard.
            stop: one more than its last index.

        Returns:
            At most three spans: a run that the border cuts, whole runs, a run that the other border cuts.

        Example:
            >>> [(s.start, s.length, s.count) for s in Span(dim=0, start=0, length=4, stride=12, count=4).within(2, 26)]
            [(0, 2, 1), (10, 4, 1), (22, 2, 1)]
        """
        found: list[Span] = []
        first = max(0, (start - self.start) // self.stride)
        last = min(self.count - 1, (stop - 1 - self.start) // self.stride)
        if first > last:
            return ()
        for low, high in dict.fromkeys([(first, first), (first + 1, last - 1), (last, last)]):
            if low > high:
                continue
            begin = max(start, self.start + self.stride * low)
            end = min(stop, self.start + self.stride * low + self.length)
            if begin < end:
                count = high - low + 1
                found.append(
                    Span(dim=self.dim, start=begin - start, length=end - begin, stride=self.stride, count=count)
                )
        return tuple(found)

    def of(self, tensor: Tensor) -> Tensor:
        """Return the entries of ``tensor`` as a view; several runs are its last dimension but one, then its last.

        Args:
            tensor: the tensor that the span was made for.

        Returns:
            A view with ``length`` entries along ``dim``; for several runs ``count`` there and ``length`` at the end.
        """
        part = tensor.narrow(self.dim, self.start, self.stop - self.start)
        return part if self.count == 1 else part.unfold(self.dim, self.length, self.stride)


def views(tensor: Tensor, spans: Sequence[Span]) -> Tensor:
    """Return the entries that all of ``spans`` share, as one view and never a copy.

    Args:
        tensor: a parameter, or its gradient.
        spans: at most one for each dimension; none for the whole tensor.

    Returns:
        A view; writing to it writes to ``tensor``.
    """
    for span in spans:  # unfold appends a dimension and moves none
        tensor = span.of(tensor)
    return tensor


def shard_views(shard: Tensor, spans: Sequence[Span], offsets: Sequence[int]) -> tuple[Tensor, ...]:
    """Return the entries that a shard has of all of ``spans``, as views: several where it splits a run.

    Args:
        shard: a block of the whole tensor.
        spans: at most one for each dimension, in the whole tensor.
        offsets: where the shard begins in the whole tensor, one for each dimension.

    Returns:
        The views; none where the shard has none of the entries.

    Example:
        >>> import torch
        >>> heads = Span(dim=0, start=0, length=2, stride=4, count=3)     # rows 0, 1, 4, 5, 8, 9 of 12
        >>> [view.flatten().tolist() for view in shard_views(torch.arange(12)[5:], [heads], [5])]
        [[5], [8, 9]]
    """
    within = [span.within(offsets[span.dim], offsets[span.dim] + shard.shape[span.dim]) for span in spans]
    return tuple(views(shard, choice) for choice in itertools.product(*within) if shard.numel())
