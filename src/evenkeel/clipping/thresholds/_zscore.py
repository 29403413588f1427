"""ZClip: thresholds for norms that are far above their running mean."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import final

import torch
from torch import Tensor

from evenkeel.clipping.thresholds._check import is_count, is_number, require
from evenkeel.clipping.thresholds._records import Blank, Records
from evenkeel.clipping.thresholds._running import Running
from evenkeel.clipping.thresholds._threshold import Limits, Seen

__all__ = ["ZScore"]

_SMALL = 1e-6  # added to the standard deviation, as in the published code


@final
@dataclass(frozen=True, eq=False)
class ZScore(Running):
    r"""Clip what lies too many standard deviations above its mean, the more the farther it lies.

    .. math::

        z_c = \frac{\lVert g_c \rVert - \mu_c}{\sigma_c + 10^{-6}}, \qquad
        \delta_c = \mu_c + \frac{\zeta^2}{z_c} \sigma_c \;\text{ where } z_c > \zeta, \text{ else } \infty

    and then, with the clipped norm :math:`m_c = \min(\lVert g_c \rVert, \delta_c)`,

    .. math::

        \mu_c \leftarrow \alpha \mu_c + (1 - \alpha) m_c, \qquad
        \sigma_c^2 \leftarrow \alpha \sigma_c^2 + (1 - \alpha) (m_c - \mu_c)^2

    where the variance takes the mean that was just renewed. In the first ``warmup`` steps nothing is clipped, and mean
    and variance are those of the norms so far, divided by their number. The paper clips everything together: that is
    ``Grouped(ZScore(), by="global")``; the form per component is ours. Its code also keeps to a fixed norm beside this,
    1.0 unless told otherwise, which the equations do not have; nor has this.

    A norm of 0, or one that is not finite, is no step of the warm-up and leaves mean and variance as they are. (After
    the warm-up an infinite norm is clipped to the mean.)

    Attributes:
        z: :math:`\zeta`, how many standard deviations above its mean a norm may lie; positive and finite.
        alpha: :math:`\alpha`, the weight of the past; from 0 up to, but not including, 1.
        warmup: how many steps the warm-up takes; 2 or more, because one norm has no spread.

    Raises:
        ThresholdError: if a value is not as described.

    Source: Kumar et al. 2025, arXiv 2504.02507 (ZClip), with adaptive scaling; the order of the updates and the
        variance of the warm-up as in its published code.

    Example:
        >>> from evenkeel.partition import components
        >>> threshold = ZScore(2.0, warmup=2)
        >>> threshold.bind(components(torch.nn.Linear(1, 1, bias=False)))
        >>> norms = (1.0, 3.0, 10.0)  # mean 2, standard deviation 1, then z = 8: 2 + 2 * 2 / 8
        >>> [round(threshold.limits(Seen(norms=torch.tensor([norm]))).thresholds.item(), 3) for norm in norms]
        [inf, inf, 2.5]
    """

    z: float = 2.5
    _: KW_ONLY
    alpha: float = 0.97
    warmup: int = 25
    _records: Records = field(
        default_factory=lambda: Records(
            "ZScore", mean=Blank(value=0), deviation=Blank(value=0), seen=Blank(value=0, counts=True)
        ),
        init=False,
        repr=False,
    )

    def __post_init__(self) -> None:
        require(is_number(self.z) and self.z > 0, "ZScore.z", self.z, "a positive finite number", "2.5 is usual")
        require(
            is_number(self.alpha) and 0 <= self.alpha < 1,
            "ZScore.alpha",
            self.alpha,
            "from 0 up to below 1",
            "0.97 is usual",
        )
        require(
            is_count(self.warmup, least=2),
            "ZScore.warmup",
            self.warmup,
            "a whole number from 2 on",
            "a spread cannot be known from fewer norms; 25 is usual",
        )

    @property
    def separate(self) -> bool:
        """True: mean and variance are one component's."""
        return True

    def limits(self, seen: Seen) -> Limits:
        """Return the thresholds of this step, and take its clipped norms into mean and variance.

        Args:
            seen: the norms of this step, ``C`` components.

        Returns:
            Thresholds, infinite where there is no spike, and the components' own norms.

        Raises:
            ThresholdError: if nobody told which components these are.
        """
        rows = self._records.rows(seen.norms)
        mean, deviation, count = rows["mean"], rows["deviation"], rows["seen"]
        norms = seen.norms.to(mean.dtype)
        score = (norms - mean) / (deviation + _SMALL)
        spike = (count >= self.warmup) & (score > self.z)
        thresholds = torch.where(spike, mean + self.z**2 / score * deviation, torch.inf)
        self._learn(seen.usable, torch.minimum(norms, thresholds), mean, deviation, count)
        return Limits(thresholds=thresholds.to(seen.norms.dtype), norms=seen.norms)

    def _learn(self, usable: Tensor, clipped: Tensor, mean: Tensor, deviation: Tensor, count: Tensor) -> None:
        count.add_(usable)
        warm = count <= self.warmup
        # In the warm-up the weight of one norm among all, which makes it the plain mean and variance.
        weight = torch.where(warm, 1 / count.clamp(min=1).to(mean.dtype), 1 - self.alpha)
        distance = clipped - mean
        # Of what a norm adds to the variance, the plain one takes its distance from the new mean once and from the old
        # mean once, the running one takes that from the new mean twice; the new one is (1 - weight) of the old one.
        share = weight.sqrt() * torch.where(warm, (1 - weight).sqrt(), 1 - weight)
        spread = torch.hypot((1 - weight).sqrt() * deviation, share * distance)  # a square might overflow
        mean.copy_(torch.where(usable, mean + weight * distance, mean))
        deviation.copy_(torch.where(usable, spread, deviation))
