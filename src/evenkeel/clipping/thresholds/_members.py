"""Which components a group has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from evenkeel.clipping.thresholds._check import refuse_mismatch
from evenkeel.partition import By, Components, regroup

__all__ = ["Members", "joint_norms"]


@final
class Members:
    """The groups that components are put into; learnt anew only where the components change."""

    def __init__(self, by: By) -> None:
        """Group by ``by``, as in :func:`evenkeel.components`."""
        self._by = by
        self._forget()

    def _forget(self) -> None:
        self._parts: Components | None = None
        self._groups: Components | None = None
        self._owners: tuple[int, ...] = ()  # the group of every component
        self._index: Tensor | None = None
        self._summed: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"_by": self._by}  # components come back from pickling without their tensors; bind() finds the groups

    def __setstate__(self, state: dict[str, By]) -> None:
        self._by = state["_by"]
        self._forget()

    def bind(self, parts: Components) -> Components:
        """Return the groups of ``parts``, the same object as long as nothing has changed.

        Args:
            parts: the components, ``C`` of them.

        Returns:
            The groups, ``G`` of them, as merged components.

        Raises:
            ComponentError: if they cannot be grouped.
        """
        if self._groups is None or (parts is not self._parts and parts != self._parts):
            self._forget()
            self._groups = regroup(parts, self._by)
            place = {group.name: index for index, group in enumerate(self._groups)}
            # A component alone is grouped under the name that it has among the others.
            self._owners = tuple(place[regroup(parts[row : row + 1], self._by)[0].name] for row in range(len(parts)))
        self._parts = parts
        return self._groups

    def index(self, norms: Tensor) -> Tensor:
        """Return the group of every component, copied to the device the first time only.

        Args:
            norms: norms of the components, shape ``[C]``.

        Returns:
            Indices from 0 to ``G - 1``, shape ``[C]``.

        Raises:
            ThresholdError: if ``norms`` are not those of the components bound.
        """
        refuse_mismatch(norms, None if self._groups is None else len(self._owners))
        if self._index is None or self._index.device != norms.device:
            owners = torch.tensor(self._owners, dtype=torch.int64, device="cpu")
            self._index = owners.to(norms.device, non_blocking=True)
        return self._index

    @property
    def count(self) -> int:
        """Number of groups."""
        return 0 if self._groups is None else len(self._groups)

    def sizes(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Return the groups' sizes, the same tuple for the same ``sizes``.

        Args:
            sizes: the sizes of the components.

        Returns:
            Sums, ``G`` of them.
        """
        if self._summed is None or self._summed[0] != sizes:
            self._summed = (sizes, _sums(sizes, self._owners, self.count))
        return self._summed[1]


def _sums(sizes: Sequence[int], owners: Sequence[int], count: int) -> tuple[int, ...]:
    sums = [0] * count
    for size, owner in zip(sizes, owners, strict=True):
        sums[owner] += size
    return tuple(sums)


def joint_norms(norms: Tensor, index: Tensor, count: int, norm_type: float) -> Tensor:
    r"""Return the norms of groups, :math:`(\sum_{c} \lVert g_c \rVert^p)^{1/p}`, without overflow on the way.

    Args:
        norms: the norms of the members, shape ``[C]``.
        index: the group of every member, shape ``[C]``.
        count: the number of groups ``G``.
        norm_type: order of the norm :math:`p`; infinity takes the greatest.

    Returns:
        Norms of shape ``[G]``; NaN where a member's is, else infinite where a member's is.

    Example:
        >>> joint_norms(torch.tensor([3.0, 1.0, 4.0]), torch.tensor([0, 1, 0]), count=2, norm_type=2.0)
        tensor([5., 1.])
    """
    greatest = torch.zeros(count, dtype=norms.dtype, device=norms.device).scatter_reduce(0, index, norms, "amax")
    if norm_type == float("inf"):
        return greatest
    # Divided by the greatest, no power is above 1. A greatest of 0 or infinity is the result already, and so is NaN.
    divisor = torch.where(greatest.isfinite() & (greatest > 0), greatest, 1.0)
    powers = (norms / divisor.index_select(0, index)) ** norm_type
    sums = torch.zeros_like(greatest).index_add(0, index, powers)
    return divisor * sums ** (1 / norm_type)
