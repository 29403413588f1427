"""The paper's threshold for the gradient as a whole: whether components matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from evenkeel.methods._contract import Clipping, Method, Owned
from evenkeel.methods._options import check_number
from evenkeel.partition import Components, regroup

__all__ = ["GlobalClipping"]


@final
@dataclass(frozen=True, kw_only=True)
class GlobalClipping(Method):
    r"""Fine-tune everything and clip the gradient as a whole, as hard as ``component-clip`` clips each component.

    .. math::

        g \leftarrow g \cdot \min\left(1, \frac{\delta}{\lVert g \rVert_2 + 10^{-6}}\right)

    with one :math:`g` for all parameters. It is the ablation of ``component-clip``: the same threshold without the
    components. What the two differ in is what clipping by component does; what this one and ``full`` differ in is what
    a low threshold does.

    Source: Pascanu et al. 2013, arXiv 1211.5063, section 3.2, with the threshold of Yang & Ma 2022, arXiv 2210.10325.

    Attributes:
        max_norm: :math:`\delta`, the norm that the whole gradient may have; positive, ``inf`` clips nothing. 0.05 is
            the headline threshold of component-wise clipping, 1.0 is usual for the whole gradient (``full``).

    Raises:
        MethodError: if ``max_norm`` is not positive.
    """

    name: ClassVar[str] = "global-clip"
    summary: ClassVar[str] = "ablation of component-clip: the gradient clipped as a whole at 0.05"
    source: ClassVar[str] = "Pascanu et al. 2013, arXiv 1211.5063; Yang & Ma 2022, arXiv 2210.10325"
    owns: ClassVar[frozenset[Owned]] = frozenset({"clipping"})

    max_norm: float = 0.05

    def __post_init__(self) -> None:
        advice = "to clip nothing, give inf"
        check_number(self.name, "max_norm", self.max_norm, above=0, infinite=True, advice=advice)

    def clipping(self, parts: Components) -> Clipping:
        """Clip the whole gradient to ``max_norm``."""
        return Clipping(parts=regroup(parts, "global"), max_norm=self.max_norm)
