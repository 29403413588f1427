"""R-Drop: two passes with different dropout, and what keeps their predictions together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from evenkeel.errors import MethodError
from evenkeel.methods._changes import has_dropout
from evenkeel.methods._contract import Method
from evenkeel.methods._divergence import check_divergence, divergence
from evenkeel.methods._options import check_number
from evenkeel.methods._session import Session
from evenkeel.methods._setting import Batch, Setting

__all__ = ["RDrop"]


@final
@dataclass(frozen=True, kw_only=True)
class RDrop(Method):
    r"""Run every batch twice, with dropout drawn anew, and pull the two predictions together.

    With the task's loss :math:`\ell_1, \ell_2` and the predictions :math:`p_i, q_i` of item :math:`i` in the two
    passes, the loss is

    .. math:: \tfrac12 (\ell_1 + \ell_2) + \alpha \frac1N \sum_i \tfrac12 [KL(p_i \| q_i) + KL(q_i \| p_i)].

    The paper's equation adds :math:`\ell_1` and :math:`\ell_2` up, so that its :math:`\alpha` counts half as much
    against them as this one. The authors' recipe for other tasks takes their mean, as here; their code for GLUE adds
    them up, and sums the divergence over the batch instead of averaging it. Items are examples, or labelled tokens of a
    causal language model; labels of a multi-label model are compared one by one, and their divergences averaged.

    The second pass draws its dropout from torch's global generator, as the first one does.

    Source: Wu et al. 2021, arXiv 2106.14448, equation 4.

    Attributes:
        alpha: :math:`\alpha`, from 0 on; the paper tries 0.1, 0.5 and 1 on each task of GLUE. With 0 there is
            no second pass.

    Raises:
        MethodError: if ``alpha`` is negative or no number.
    """

    name: ClassVar[str] = "r-drop"
    summary: ClassVar[str] = "two dropout passes, the mean of their losses, and alpha times their symmetric KL"
    source: ClassVar[str] = "Wu et al. 2021, arXiv 2106.14448"

    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_number(self.name, "alpha", self.alpha, least=0, advice="0.1, 0.5 and 1 are usual")

    def check(self, setting: Setting) -> None:
        """Refuse models without classes, and those without dropout, on which both passes are the same."""
        check_divergence(self.name, setting.problem, regression=False)
        if self.alpha > 0 and not has_dropout(setting.model):
            raise MethodError(
                "r-drop compares two passes with different dropout, and this model has none; set a dropout rate above "
                "0 in its configuration, or use full"
            )

    def begin(self, setting: Setting) -> Session:
        """Return the session that makes the second pass; with no weight one that does nothing."""
        return _RDropSession(self.alpha) if self.alpha > 0 else Session()


@final
class _RDropSession(Session):
    """Makes the second pass, and adds what turns the first one's loss into that of both."""

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha

    def loss_term(self, batch: Batch) -> Tensor:
        loss, outputs = batch.again()
        apart = divergence(batch.problem)(batch.logits(), batch.logits(outputs))
        return (loss - batch.loss) / 2 + self._alpha * batch.mean(apart) / 2
