"""AdaGC: each tensor clipped to a little more than it had lately."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from evenkeel.clipping.thresholds import Ema
from evenkeel.methods._contract import Clipping, Method, Owned
from evenkeel.methods._options import check_number
from evenkeel.partition import Components

__all__ = ["AdaGC"]


@final
@dataclass(frozen=True, kw_only=True)
class AdaGC(Method):
    r"""Clip every tensor relative to a running average of its own clipped norms.

    .. math::

        g_c \leftarrow g_c \cdot \min\left(1, \frac{\lambda \gamma_c}{\lVert g_c \rVert}\right), \qquad
        \gamma_c \leftarrow \beta \gamma_c + (1 - \beta) \lVert g_c \rVert

    with the clipped :math:`g_c` in the average. In the first ``warmup`` steps the whole gradient is clipped at
    ``warmup_max_norm``, and :math:`\gamma_c` is the least norm that the tensor was left with. Cut parts of a fused
    tensor are tensors of their own, as they are where projections are separate. See
    :class:`evenkeel.thresholds.Ema`.

    The warm-up is the paper's, for pretraining. A fine-tuning may be over before it: choose it in proportion.

    Source: Wang et al. 2025, arXiv 2502.11034, algorithm 1; the values of its first version (later ones: 1.04, 0.99).

    Attributes:
        ratio: :math:`\lambda`, how many times its average a norm may be; positive, 1.05 in the paper.
        beta: :math:`\beta`, the weight of the past; from 0 up to, but not including, 1; 0.98 in the paper.
        warmup: steps of the warm-up, a whole number from 0 (none); 100 in the paper.
        warmup_max_norm: what the norm of the whole gradient may be in the warm-up; positive, 1.0 in the paper.

    Raises:
        MethodError: if a value is not as described.
    """

    name: ClassVar[str] = "adagc"
    summary: ClassVar[str] = "each tensor clipped to 1.05 times a running average of its clipped norms"
    source: ClassVar[str] = "Wang et al. 2025, arXiv 2502.11034"
    owns: ClassVar[frozenset[Owned]] = frozenset({"clipping"})

    ratio: float = 1.05
    beta: float = 0.98
    warmup: int = 100
    warmup_max_norm: float = 1.0

    def __post_init__(self) -> None:
        name = self.name
        check_number(name, "ratio", self.ratio, above=0, advice="1.05 is the paper's")
        check_number(name, "beta", self.beta, least=0, below=1, advice="0.98 is the paper's")
        check_number(name, "warmup", self.warmup, least=0, whole=True, advice="it counts steps; 100 is the paper's")
        advice = "1.0 is the paper's; for no clipping in the beginning, give warmup=0"
        check_number(name, "warmup_max_norm", self.warmup_max_norm, above=0, advice=advice)

    def clipping(self, parts: Components) -> Clipping:
        """Clip every tensor by its own average."""
        ema = Ema(self.ratio, beta=self.beta, warmup=self.warmup, warmup_max_norm=self.warmup_max_norm)
        return Clipping(parts=parts, max_norm=ema)
