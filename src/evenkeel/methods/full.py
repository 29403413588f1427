"""Full fine-tuning: every weight from the first step on, with the gradient clipped as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from evenkeel.methods._contract import Clipping, Method, Owned, Recipe
from evenkeel.methods._options import check_flag, check_number
from evenkeel.partition import Components, regroup

__all__ = ["FullFineTuning"]


@final
@dataclass(frozen=True, kw_only=True)
class FullFineTuning(Method):
    """Fine-tune everything with bias-corrected AdamW and global gradient norm clipping.

    Source: Devlin et al. 2019, arXiv 1810.04805, with the bias correction that Mosbach et al. 2021 (arXiv 2006.04884)
    and Zhang et al. 2021 (arXiv 2006.05987) found necessary.

    Attributes:
        max_norm: the norm that the whole gradient may have; positive, ``inf`` clips nothing.
        correct_bias: whether Adam's moments are corrected for having begun at 0; false is the form that BERT was
            published with, and nothing else is changed.

    Raises:
        MethodError: if ``max_norm`` is not positive, or ``correct_bias`` no truth value.
    """

    name: ClassVar[str] = "full"
    summary: ClassVar[str] = "all weights at once, AdamW with bias correction, global clipping at 1.0"
    source: ClassVar[str] = "Devlin et al. 2019, arXiv 1810.04805; Mosbach et al. 2021, arXiv 2006.04884"
    owns: ClassVar[frozenset[Owned]] = frozenset({"clipping"})

    max_norm: float = 1.0
    correct_bias: bool = True

    def __post_init__(self) -> None:
        advice = "to clip nothing, give inf"
        check_number(self.name, "max_norm", self.max_norm, above=0, infinite=True, advice=advice)
        check_flag(self.name, "correct_bias", self.correct_bias, advice="true is what later work found necessary")

    def recipe(self) -> Recipe:
        """Leave everything to the training, but for the bias correction where it is to go."""
        return Recipe() if self.correct_bias else Recipe(correct_bias=False)

    def clipping(self, parts: Components) -> Clipping:
        """Clip the whole gradient to ``max_norm``."""
        return Clipping(parts=regroup(parts, "global"), max_norm=self.max_norm)
