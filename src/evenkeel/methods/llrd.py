"""Layer-wise learning rate decay: the lower the layer, the smaller its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from evenkeel.errors import MethodError
from evenkeel.methods._contract import Method, Owned
from evenkeel.methods._options import check_number
from evenkeel.methods._place import is_above_blocks
from evenkeel.methods._setting import Setting
from evenkeel.partition import Components

__all__ = ["LayerWiseDecay"]


@final
@dataclass(frozen=True, kw_only=True)
class LayerWiseDecay(Method):
    r"""Fine-tune everything, with a learning rate that falls from the top of the model to its bottom.

    .. math::

        \eta_k = \eta \, d^k

    with :math:`k = 0` for head, pooler and a norm behind the last block; :math:`k = 1` for the top block, 2 for the one
    below it, and so on; and :math:`k = L + 1` for the embeddings below :math:`L` blocks. The paper's text sets
    the rate of "the top layer"; these exponents are those of its published code. There, what is neither head, pooler,
    block nor embedding table, such as ELECTRA's projection of the embeddings, is not trained at all; here it counts as
    embeddings.

    A model of two stacks, or towers, is counted in each from its own top: the top of an encoder is as near to the loss
    as that of the decoder, whose every block reads it. What lies below both has the smaller rate.

    Source: Zhang et al. 2021, arXiv 2006.05987, section 7; Howard & Ruder 2018, arXiv 1801.06146, section
        3.2 (discriminative fine-tuning).

    Attributes:
        decay: :math:`d`, above 0 up to 1, which is the same rate everywhere; 0.95 in the paper (0.9 is common).

    Raises:
        MethodError: if ``decay`` is not as described.
    """

    name: ClassVar[str] = "llrd"
    summary: ClassVar[str] = "a learning rate that falls by 5 % with every layer from the top down"
    source: ClassVar[str] = "Zhang et al. 2021, arXiv 2006.05987; Howard & Ruder 2018, arXiv 1801.06146"
    owns: ClassVar[frozenset[Owned]] = frozenset({"rates"})
    conflicts: ClassVar[Mapping[str, str]] = {
        "head-only": "head and pooler, which are all that it trains, have the same learning rate in llrd",
    }

    decay: float = 0.95

    def __post_init__(self) -> None:
        check_number(self.name, "decay", self.decay, above=0, most=1, advice="0.95 is the paper's")

    def check(self, setting: Setting) -> None:
        """Refuse models without layers to tell apart."""
        depth = setting.parts.depth
        if depth < 2:
            raise MethodError(
                f"llrd needs a model of at least 2 blocks with weights of their own, but found {depth}; use full for "
                "this model"
            )

    def rates(self, parts: Components) -> Mapping[str, float]:
        """Return the decay to the power of a component's distance from the top."""
        depths: dict[str | None, int] = {}
        for part in parts:
            if part.layer is not None:
                depths[part.stack] = max(depths.get(part.stack, 0), part.layer + 1)
        deepest = max(depths.values(), default=0)
        found = {}
        for part in parts:
            depth = depths.get(part.stack, deepest)
            below = depth + 1 if part.layer is None else depth - part.layer
            found[part.name] = self.decay ** (0 if is_above_blocks(part) else below)
        return found
