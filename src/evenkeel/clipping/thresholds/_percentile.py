"""AutoClip: thresholds that are a percentile of the norms so far."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, field
from typing import final

import torch
from torch import Tensor

from evenkeel.clipping.thresholds._check import is_count, is_number, require
from evenkeel.clipping.thresholds._records import Blank, Records
from evenkeel.clipping.thresholds._running import Running
from evenkeel.clipping.thresholds._threshold import Limits, Seen

__all__ = ["Percentile"]


@final
@dataclass(frozen=True, eq=False)
class Percentile(Running):
    r"""Allow every component a percentile of its own norms so far, this step's included.

    .. math::

        \delta_c = \mathrm{percentile}_p\left(\lVert g_c^{(t-w+1)} \rVert, \dots, \lVert g_c^{(t)} \rVert\right)

    of the norms before clipping, between two of them linearly as in ``numpy.percentile``. The paper looks at the whole
    training and clips everything together: that is ``Grouped(Percentile(), by="global")`` with a window as long as the
    training. The form per component, and the window, are ours.

    A norm of 0, or one that is not finite, is left out; the gradient is then clipped by the percentile of the others.
    Memory: ``window`` numbers for each component.

    Attributes:
        p: the percentile, from 0 (the least norm) to 100 (the greatest, which clips nothing).
        window: how many of the last norms of a component count; 1 or more.

    Raises:
        ThresholdError: if a value is not as described.

    Source: Seetharaman et al. 2020, arXiv 2007.14469 (AutoClip), and its published code.

    Example:
        >>> from evenkeel.partition import components
        >>> threshold = Percentile(50)
        >>> threshold.bind(components(torch.nn.Linear(1, 1, bias=False)))
        >>> [threshold.limits(Seen(norms=torch.tensor([norm]))).thresholds.item() for norm in (1.0, 9.0, 2.0)]
        [1.0, 5.0, 2.0]
    """

    p: float = 10.0
    _: KW_ONLY
    window: int = 256
    _records: Records = field(init=False, repr=False)

    def __post_init__(self) -> None:
        require(
            is_number(self.p) and 0 <= self.p <= 100,
            "Percentile.p",
            self.p,
            "from 0 to 100",
            "10 is the published one; a share of 0.1 is written as 10",
        )
        require(
            is_count(self.window, least=1),
            "Percentile.window",
            self.window,
            "a whole number from 1 on",
            "say how many of the last norms count",
        )
        ring = Blank(value=math.inf, width=int(self.window))  # infinity sorts behind all norms
        records = Records("Percentile", ring=ring, seen=Blank(value=0, counts=True))
        object.__setattr__(self, "_records", records)

    @property
    def separate(self) -> bool:
        """True: a percentile is of one component's norms."""
        return True

    def limits(self, seen: Seen) -> Limits:
        """Return the percentiles, this step's norms included.

        Args:
            seen: the norms of this step, ``C`` components.

        Returns:
            Thresholds, infinite where there were no norms yet, and the components' own norms.

        Raises:
            ThresholdError: if nobody told which components these are.
        """
        rows = self._records.rows(seen.norms)
        ring, count = rows["ring"], rows["seen"]
        self._write(ring, count, seen)
        return Limits(thresholds=self._percentile(ring, count).to(seen.norms.dtype), norms=seen.norms)

    def _write(self, ring: Tensor, count: Tensor, seen: Seen) -> None:
        """Put the usable norms in the place of the oldest, in place."""
        place = (count % self.window).unsqueeze(1)
        norms, usable = seen.norms.to(ring.dtype).unsqueeze(1), seen.usable.unsqueeze(1)
        ring.scatter_(1, place, torch.where(usable, norms, ring.gather(1, place)))
        count.add_(seen.usable)

    def _percentile(self, ring: Tensor, count: Tensor) -> Tensor:
        # The percentile never lies behind this many of the least norms, so that no more need sorting.
        enough = min(self.window, math.floor(self.p / 100 * (self.window - 1)) + 2)
        least = ring.topk(enough, dim=1, largest=False, sorted=True).values
        last = (count.clamp(max=self.window) - 1).clamp(min=0)
        position = last.to(ring.dtype) * (self.p / 100)
        low = torch.minimum(position.floor().to(torch.int64), last).clamp(max=enough - 1)
        high = torch.minimum(low + 1, last).clamp(max=enough - 1)
        below, above = (least.gather(1, index.unsqueeze(1)).squeeze(1) for index in (low, high))
        between = torch.lerp(below, above, position - low)
        return torch.where(count > 0, between, torch.inf)
