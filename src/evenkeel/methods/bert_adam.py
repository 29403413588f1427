"""The optimizer that BERT was published with, in the form in which PyTorch users first had it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from evenkeel.methods._contract import Clipping, Method, Owned, Recipe
from evenkeel.methods._options import check_number
from evenkeel.partition import Components

__all__ = ["BertAdam"]


@final
@dataclass(frozen=True, kw_only=True)
class BertAdam(Method):
    r"""Fine-tune with Adam without bias correction, each tensor's gradient clipped on its own: what is to be beaten.

    .. math::

        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
        w \leftarrow w - \eta \left(\frac{m}{\sqrt{v} + \epsilon} + \lambda w\right)

    where :math:`g` is the clipped gradient of a tensor. With :math:`m = v = 0` in the beginning, the first step is
    :math:`(1 - \beta_1) / \sqrt{1 - \beta_2} = 3.2` times the corrected one. As there, biases and norms are not
    decayed, which the Trainer sees to.

    Clipping by tensor, at 1.0, is that of the port to PyTorch; the published TensorFlow code clips the whole gradient
    at 1.0. Cut parts of a fused tensor are clipped on their own, as they are where projections are separate. The
    warm-up that both have is ``bert-adam+warmup``.

    Source: Devlin et al. 2019, arXiv 1810.04805, its published code and the ``BertAdam`` of pytorch-pretrained-bert.

    Attributes:
        max_norm: the norm that each tensor's gradient may have; positive, ``inf`` clips nothing, 1.0 is the published
            one.
        weight_decay: :math:`\lambda`, from 0; 0.01 is the published one.
        eps: :math:`\epsilon`, positive; 1e-6 is the published one.

    Raises:
        MethodError: if a value is not as described.
    """

    name: ClassVar[str] = "bert-adam"
    summary: ClassVar[str] = "legacy: Adam without bias correction, each tensor clipped on its own at 1.0"
    source: ClassVar[str] = "Devlin et al. 2019, arXiv 1810.04805"
    owns: ClassVar[frozenset[Owned]] = frozenset({"clipping"})

    max_norm: float = 1.0
    weight_decay: float = 0.01
    eps: float = 1e-6

    def __post_init__(self) -> None:
        name = self.name
        check_number(name, "max_norm", self.max_norm, above=0, infinite=True, advice="to clip nothing, give inf")
        check_number(name, "weight_decay", self.weight_decay, least=0, advice="0.01 is the published one")
        check_number(name, "eps", self.eps, above=0, advice="1e-6 is the published one")

    def recipe(self) -> Recipe:
        """Lay down the optimizer."""
        return Recipe(weight_decay=self.weight_decay, eps=self.eps, correct_bias=False)

    def clipping(self, parts: Components) -> Clipping:
        """Clip every tensor to ``max_norm``."""
        return Clipping(parts=parts, max_norm=self.max_norm)
