"""AutoClip: the whole gradient clipped to a percentile of its norms so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from evenkeel.clipping.thresholds import Percentile
from evenkeel.methods._contract import Clipping, Method, Owned
from evenkeel.methods._options import check_number
from evenkeel.partition import Components, regroup

__all__ = ["AutoClip"]


@final
@dataclass(frozen=True, kw_only=True)
class AutoClip(Method):
    r"""Clip the gradient as a whole to a percentile of the norms that it has had, this step's included.

    .. math::

        \delta_t = \mathrm{percentile}_p\left(\lVert g_1 \rVert, \dots, \lVert g_t \rVert\right), \qquad
        g_t \leftarrow g_t \cdot \min\left(1, \frac{\delta_t}{\lVert g_t \rVert + 10^{-6}}\right)

    of the norms before clipping. The paper remembers all norms; here it is the last ``window`` of them, which is
    the same in a training that is no longer. See :class:`evenkeel.thresholds.Percentile`. The form for each component
    on its own is ours: ``ComponentClipping(max_norm=Percentile(10))``.

    Source: Seetharaman et al. 2020, arXiv 2007.14469, algorithm 1.

    Attributes:
        p: the percentile, from 0 (the least norm) to 100 (which clips nothing); 10 in the paper.
        window: how many of the last norms count, a whole number from 1 to 10 million, for each of which there is room
            from the beginning.

    Raises:
        MethodError: if a value is not as described.
    """

    name: ClassVar[str] = "autoclip"
    summary: ClassVar[str] = "the gradient clipped as a whole to the 10th percentile of its norms so far"
    source: ClassVar[str] = "Seetharaman et al. 2020, arXiv 2007.14469"
    owns: ClassVar[frozenset[Owned]] = frozenset({"clipping"})

    p: float = 10.0
    window: int = 10_000

    def __post_init__(self) -> None:
        advice = "10 is the paper's; a share of 0.1 is written as 10"
        check_number(self.name, "p", self.p, least=0, most=100, advice=advice)
        advice = "it counts steps, and 10000 is the default"
        check_number(self.name, "window", self.window, least=1, most=10_000_000, whole=True, advice=advice)

    def clipping(self, parts: Components) -> Clipping:
        """Clip the whole gradient by its own past."""
        return Clipping(parts=regroup(parts, "global"), max_norm=Percentile(self.p, window=self.window))
