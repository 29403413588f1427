"""AGC: each row of a weight clipped relative to its own norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from evenkeel.clipping.thresholds import WeightRelative
from evenkeel.methods._contract import Clipping, Method, Owned
from evenkeel.methods._options import check_flag, check_number
from evenkeel.partition import Components

__all__ = ["AGC"]


@final
@dataclass(frozen=True, kw_only=True)
class AGC(Method):
    r"""Allow the gradient of every unit a share of its weights' norm.

    .. math::

        g_u \leftarrow g_u \cdot \min\left(1, \frac{\lambda \max(\lVert w_u \rVert, \epsilon)}{\lVert g_u \rVert}\right)

    A unit is a row of a matrix, what one output is computed from; a vector is one unit. See
    :class:`evenkeel.thresholds.WeightRelative`.

    The paper leaves the last linear layer unclipped and finds that this matters; so does this with the head. That is
    everything whose role is ``head``: where a head is two layers, as RoBERTa's, both are new and both are left alone.
    A model without a head of its own (tied to the embeddings) is clipped everywhere.

    Source: Brock et al. 2021, arXiv 2102.06171, section 4, equation 3; section 4.1 for the last layer.

    Attributes:
        ratio: :math:`\lambda`; positive, 0.01 in the paper, which tries 0.01 to 0.16.
        floor: :math:`\epsilon`, the least norm that a unit's weights count with; positive, 1e-3 in the paper.
        head: whether the head is clipped too; not in the paper.

    Raises:
        MethodError: if a value is not as described.
    """

    name: ClassVar[str] = "agc"
    summary: ClassVar[str] = "each row of a weight clipped to 0.01 times its own norm, but for the head"
    source: ClassVar[str] = "Brock et al. 2021, arXiv 2102.06171"
    owns: ClassVar[frozenset[Owned]] = frozenset({"clipping"})

    ratio: float = 0.01
    floor: float = 1e-3
    head: bool = False

    def __post_init__(self) -> None:
        check_number(self.name, "ratio", self.ratio, above=0, advice="0.01 is the paper's")
        check_number(self.name, "floor", self.floor, above=0, advice="1e-3 is the paper's")
        check_flag(self.name, "head", self.head, advice="false leaves the head alone, as the paper does")

    def clipping(self, parts: Components) -> Clipping:
        """Clip every row, of all but the head."""
        unclipped = () if self.head else ("head",)
        threshold = WeightRelative(self.ratio, floor=self.floor, per="row", unclipped=unclipped)
        return Clipping(parts=parts, max_norm=threshold)
