"""Learning-rate warm-up, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from evenkeel.methods._contract import Method, Recipe
from evenkeel.methods._options import check_number

__all__ = ["Warmup"]


@final
@dataclass(frozen=True, kw_only=True)
class Warmup(Method):
    r"""Fine-tune as the training says, with a learning rate that rises linearly before it falls linearly.

    In a training of :math:`T` steps with the peak rate :math:`\eta` and :math:`W = \lceil w T \rceil`, step
    :math:`t = 0, \dots, T - 1` has the rate

    .. math::

        \eta_t = \eta \cdot \begin{cases} t / W & t < W \\ (T - t) / (T - W) & t \ge W \end{cases}

    so that the first step of a warm-up moves nothing. A method that trains in phases has a warm-up in each phase that
    starts anew.

    Source: Devlin et al. 2019, arXiv 1810.04805, appendix A.2 (10 000 steps of pretraining; the published code warms
        fine-tuning up over a tenth of it); Mosbach et al. 2021, arXiv 2006.04884, section 6, find it necessary.

    Attributes:
        share: :math:`w`, what share of the steps the rate rises in, from 0 up to, but not including, 1; 0.1 is usual.

    Raises:
        MethodError: if ``share`` is not as described.
    """

    name: ClassVar[str] = "warmup"
    summary: ClassVar[str] = "the learning rate rises in the first tenth of the steps, then falls linearly"
    source: ClassVar[str] = "Devlin et al. 2019, arXiv 1810.04805; Mosbach et al. 2021, arXiv 2006.04884"

    share: float = 0.1

    def __post_init__(self) -> None:
        check_number(self.name, "share", self.share, least=0, below=1, advice="0.1 is usual")

    def recipe(self) -> Recipe:
        """Lay down warm-up and schedule."""
        return Recipe(warmup=self.share, schedule="linear")
