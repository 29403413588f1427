"""AGGC: modules of one kind clipped together, relative to a running average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from evenkeel.clipping.thresholds import CappedEma, Grouped
from evenkeel.methods._contract import Clipping, Method, Owned
from evenkeel.methods._options import check_number
from evenkeel.partition import Components

__all__ = ["AGGC"]


@final
@dataclass(frozen=True, kw_only=True)
class AGGC(Method):
    r"""Clip all components of one role together, relative to a running average, by a bounded factor a step.

    With :math:`\lVert g_r \rVert` the norm of everything of role :math:`r` (query, key, ffn_in, ...), in all layers,

    .. math::

        \delta_r = \max(\alpha_t S_r, \; \kappa \lVert g_r \rVert), \qquad
        g_r \leftarrow g_r \cdot \min\left(1, \frac{\delta_r}{\lVert g_r \rVert + 10^{-6}}\right), \qquad
        S_r \leftarrow \beta S_r + (1 - \beta) \lVert g_r \rVert

    with the clipped :math:`g_r` in the average; the first step clips nothing. :math:`\alpha_t` stays ``ratio``, unless
    ``total_steps`` is given: a method does not know how long its training is, so that the published rise from 0.6 to
    0.7, between the shares 0.4 and 0.7 of the training, needs to be told. The published lower bound, which raises small
    gradients and is off in the published runs, is left out. See :class:`evenkeel.thresholds.CappedEma`.

    Know what the published values do: :math:`\alpha < 1` makes a steady norm shrink by :math:`\kappa` in every step,
    and no spike by more.

    Source: Li et al. 2026, arXiv 2601.11864, with the values and the cap of its published code for language models.

    Attributes:
        ratio: :math:`\alpha` in the beginning; positive, 0.6 in the published code.
        late_ratio: :math:`\alpha` in the end, where ``total_steps`` is given; positive, 0.7 in the published code.
        beta: :math:`\beta`, the weight of the past; from 0 up to, but not including, 1; 0.95 in the published code.
        cap: :math:`\kappa`, the least factor; from 0, for no cap, to 1, for no clipping; 0.9 in the published code.
        total_steps: steps of the training, over which the ratio rises; None keeps ``ratio``.

    Raises:
        MethodError: if a value is not as described.
    """

    name: ClassVar[str] = "aggc"
    summary: ClassVar[str] = "all components of a role clipped together, relative to a running average of their norm"
    source: ClassVar[str] = "Li et al. 2026, arXiv 2601.11864"
    owns: ClassVar[frozenset[Owned]] = frozenset({"clipping"})

    ratio: float = 0.6
    late_ratio: float = 0.7
    beta: float = 0.95
    cap: float = 0.9
    total_steps: int | None = None

    def __post_init__(self) -> None:
        name = self.name
        check_number(name, "ratio", self.ratio, above=0, advice="0.6 is the published one")
        check_number(name, "late_ratio", self.late_ratio, above=0, advice="0.7 is the published one")
        check_number(name, "beta", self.beta, least=0, below=1, advice="0.95 is the published one")
        check_number(name, "cap", self.cap, least=0, most=1, advice="0 is for no cap, 0.9 the published one")
        advice = "leave it out to keep the first ratio"
        check_number(name, "total_steps", self.total_steps, least=1, whole=True, optional=True, advice=advice)

    def clipping(self, parts: Components) -> Clipping:
        """Clip the components of each role together."""
        threshold = CappedEma(
            self.ratio, late_ratio=self.late_ratio, beta=self.beta, cap=self.cap, total_steps=self.total_steps
        )
        return Clipping(parts=parts, max_norm=Grouped(threshold, by="role"))
