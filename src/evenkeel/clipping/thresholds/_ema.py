"""AdaGC: thresholds relative to a running average of clipped norms."""

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

__all__ = ["Ema"]


@final
@dataclass(frozen=True, eq=False)
class Ema(Running):
    r"""Allow every component a little more than it had lately.

    .. math::

        \delta_c = \lambda \gamma_c, \qquad
        \gamma_c \leftarrow \beta \gamma_c + (1 - \beta) \min(\lVert g_c \rVert, \delta_c)

    In the first ``warmup`` steps everything is clipped together, to the total norm ``warmup_max_norm``, and
    :math:`\gamma_c` is the least norm that component :math:`c` was left with. Without a warm-up the first norm of a
    component begins its average and is not clipped.

    A norm of 0, or one that is not finite, tells nothing: it is no step of the component's warm-up and leaves its
    average as it is (the gradient is clipped by what the average was). So a component that is unfrozen later has a
    warm-up of its own, clipped by the total norm of that time. Where the total norm is not finite, a component in its
    warm-up is clipped by its own norm, so that one NaN stays in its component.

    Attributes:
        ratio: :math:`\lambda`, how many times its average a norm may be; positive and finite.
        beta: :math:`\beta`, the weight of the past; from 0 up to, but not including, 1.
        warmup: how many steps the warm-up takes; 0 for none.
        warmup_max_norm: what the total norm may be in the warm-up, in units of the gradient's norm; positive.

    Raises:
        ThresholdError: if a value is not as described.

    Source: Wang et al. 2025, arXiv 2502.11034 (AdaGC): its rules for clipping, average and warm-up, with the values of
        the first version; a later one has the ratio 1.04 and beta 0.99.

    Example:
        >>> from evenkeel.partition import components
        >>> threshold = Ema(2.0, beta=0.5, warmup=0)
        >>> threshold.bind(components(torch.nn.Linear(1, 1, bias=False)))
        >>> [threshold.limits(Seen(norms=torch.tensor([norm]))).thresholds.item() for norm in (1.0, 9.0, 1.0)]
        [inf, 2.0, 3.0]
    """

    ratio: float = 1.05
    _: KW_ONLY
    beta: float = 0.98
    warmup: int = 100
    warmup_max_norm: float = 1.0
    _records: Records = field(
        default_factory=lambda: Records("Ema", average=Blank(value=math.inf), seen=Blank(value=0, counts=True)),
        init=False,
        repr=False,
    )

    def __post_init__(self) -> None:
        require(
            is_number(self.ratio) and self.ratio > 0,
            "Ema.ratio",
            self.ratio,
            "a positive finite number",
            "1.05 is usual",
        )
        require(
            is_number(self.beta) and 0 <= self.beta < 1, "Ema.beta", self.beta, "from 0 up to below 1", "0.98 is usual"
        )
        require(
            is_count(self.warmup, least=0),
            "Ema.warmup",
            self.warmup,
            "a whole number from 0 on",
            "0 begins with the first norm",
        )
        require(
            is_number(self.warmup_max_norm) and self.warmup_max_norm > 0,
            "Ema.warmup_max_norm",
            self.warmup_max_norm,
            "a positive finite number",
            "for no clipping in the beginning, pass warmup=0",
        )

    @property
    def separate(self) -> bool:
        """Whether there is no warm-up, which clips everything together."""
        return self.warmup == 0

    def limits(self, seen: Seen) -> Limits:
        """Return the thresholds of this step, and take its clipped norms into the averages.

        Args:
            seen: the norms of this step, ``C`` components.

        Returns:
            Thresholds; in the warm-up the bound of the total norm, with the total norm as the one that counts.

        Raises:
            ThresholdError: if nobody told which components these are.
        """
        rows = self._records.rows(seen.norms)
        average, count = rows["average"], rows["seen"]
        norms, total = seen.norms.to(average.dtype), seen.total_norm.to(average.dtype)
        warm = count < self.warmup
        # An average that was not begun is infinite, and so is the threshold.
        thresholds = torch.where(warm, self.warmup_max_norm, self.ratio * average)
        counted = torch.where(warm & total.isfinite(), total, norms)

        # As in the paper without the 1e-6 of the coefficient: with it, averages of tiny norms would shrink to nothing.
        clipped = norms * (thresholds / counted).clamp(max=1.0)
        self._learn(seen.usable, warm, clipped, average, count)
        dtype = seen.norms.dtype
        return Limits(thresholds=thresholds.to(dtype), norms=counted.to(dtype))

    def _learn(self, usable: Tensor, warm: Tensor, clipped: Tensor, average: Tensor, count: Tensor) -> None:
        least = torch.minimum(average, clipped)
        moved = self.beta * average + (1 - self.beta) * clipped
        new = torch.where(warm | average.isinf(), least, moved)
        average.copy_(torch.where(usable, new, average))
        count.add_(usable)
