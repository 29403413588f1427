"""ZClip: the whole gradient clipped where its norm is a spike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from evenkeel.clipping.thresholds import ZScore
from evenkeel.methods._contract import Clipping, Method, Owned
from evenkeel.methods._options import check_number
from evenkeel.partition import Components, regroup

__all__ = ["ZClip"]


@final
@dataclass(frozen=True, kw_only=True)
class ZClip(Method):
    r"""Clip the gradient as a whole where its norm lies too many standard deviations above its running mean.

    .. math::

        z_t = \frac{\lVert g_t \rVert - \mu}{\sigma + 10^{-6}}, \qquad
        \delta_t = \mu + \frac{\zeta^2}{z_t} \sigma \;\text{ where } z_t > \zeta, \text{ else } \infty

    and then, with the clipped norm :math:`m_t`, :math:`\mu \leftarrow \alpha \mu + (1 - \alpha) m_t` and
    :math:`\sigma^2 \leftarrow \alpha \sigma^2 + (1 - \alpha) (m_t - \mu)^2`. The first ``warmup`` steps clip nothing
    and tell mean and variance. See :class:`evenkeel.thresholds.ZScore`.

    The published code also keeps to a fixed norm, 1.0 unless told otherwise, in the warm-up and after it. The paper's
    equations do not have that, nor has this: nothing but spikes is clipped.

    Source: Kumar et al. 2025, arXiv 2504.02507, with adaptive scaling; the order of the updates, and the 25 steps, are
        those of its published code.

    Attributes:
        z: :math:`\zeta`, how many standard deviations above its mean a norm may lie; positive, 2.5 in the paper.
        alpha: :math:`\alpha`, the weight of the past; from 0 up to, but not including, 1; 0.97 in the paper.
        warmup: steps of the warm-up, a whole number from 2, because one norm has no spread; 25 in the published code.

    Raises:
        MethodError: if a value is not as described.
    """

    name: ClassVar[str] = "zclip"
    summary: ClassVar[str] = "the gradient clipped as a whole where its norm lies 2.5 deviations above its mean"
    source: ClassVar[str] = "Kumar et al. 2025, arXiv 2504.02507"
    owns: ClassVar[frozenset[Owned]] = frozenset({"clipping"})

    z: float = 2.5
    alpha: float = 0.97
    warmup: int = 25

    def __post_init__(self) -> None:
        check_number(self.name, "z", self.z, above=0, advice="2.5 is the paper's")
        check_number(self.name, "alpha", self.alpha, least=0, below=1, advice="0.97 is the paper's")
        advice = "it counts steps, and a spread takes two; 25 is the published one"
        check_number(self.name, "warmup", self.warmup, least=2, whole=True, advice=advice)

    def clipping(self, parts: Components) -> Clipping:
        """Clip spikes of the whole gradient."""
        threshold = ZScore(self.z, alpha=self.alpha, warmup=self.warmup)
        return Clipping(parts=regroup(parts, "global"), max_norm=threshold)
