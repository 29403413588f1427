"""The baseline of Mosbach et al.: the training's own settings, chosen well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, final, get_args

from evenkeel.methods._contract import Clipping, Method, Owned, Recipe
from evenkeel.methods._options import check_choice, check_flag, check_number
from evenkeel.partition import Components, regroup

__all__ = ["Mosbach"]

Schedule = Literal["linear", "cosine", "constant"]


@final
@dataclass(frozen=True, kw_only=True)
class Mosbach(Method):
    r"""Fine-tune long, with bias-corrected AdamW and a learning rate that is warmed up.

    Each setting takes the place of the training's own; None leaves that as the training says. The learning rate is left
    to it: the recipe's 2e-5 is for BERT-large, and the paper tries 1e-5 to 5e-5.

    The published optimizer adds :math:`\epsilon` before the bias correction, torch's AdamW after it, which multiplies
    the published :math:`\epsilon` by :math:`1 / \sqrt{1 - \beta_2^t}` in step :math:`t`; this is torch's. The published
    configurations also keep the best of several evaluations, which is the training's to decide
    (``load_best_model_at_end``).

    Source: Mosbach et al. 2021, arXiv 2006.04884, section 6 and its published configurations.

    Attributes:
        epochs: epochs of the training, or of each phase that names none of its own; positive, 20 in the paper, or None.
        learning_rate: the peak learning rate; positive, 2e-5 in the paper; None is as the training says.
        warmup: share of the steps in which the rate rises linearly, from 0 up to, but not including, 1; or None.
        schedule: how the rate goes on from there: ``"linear"`` to 0, ``"cosine"`` or ``"constant"``; or None.
        weight_decay: AdamW's decay, from 0; or None.
        eps: AdamW's epsilon, positive; or None.
        correct_bias: whether Adam's moments are corrected for having begun at 0.
        max_norm: the norm that the whole gradient may have; positive, ``inf`` clips nothing.

    Raises:
        MethodError: if a value is not as described.
    """

    name: ClassVar[str] = "mosbach"
    summary: ClassVar[str] = "20 epochs, bias correction, 10 % warm-up, linear decay, global clipping at 1.0"
    source: ClassVar[str] = "Mosbach et al. 2021, arXiv 2006.04884"
    owns: ClassVar[frozenset[Owned]] = frozenset({"clipping"})

    epochs: float | None = 20
    learning_rate: float | None = None
    warmup: float | None = 0.1
    schedule: Schedule | None = "linear"
    weight_decay: float | None = 0.01
    eps: float | None = 1e-6
    correct_bias: bool = True
    max_norm: float = 1.0

    def __post_init__(self) -> None:
        name = self.name
        check_number(name, "epochs", self.epochs, above=0, optional=True, advice="20 is the paper's")
        check_number(name, "learning_rate", self.learning_rate, above=0, optional=True, advice="2e-5 is the paper's")
        check_number(name, "warmup", self.warmup, least=0, below=1, optional=True, advice="0.1 is the paper's")
        if self.schedule is not None:
            check_choice(name, "schedule", self.schedule, get_args(Schedule))
        check_number(name, "weight_decay", self.weight_decay, least=0, optional=True, advice="0.01 is the paper's")
        check_number(name, "eps", self.eps, above=0, optional=True, advice="1e-6 is the paper's")
        check_flag(name, "correct_bias", self.correct_bias, advice="true is the paper's recipe")
        check_number(name, "max_norm", self.max_norm, above=0, infinite=True, advice="to clip nothing, give inf")

    def recipe(self) -> Recipe:
        """Lay down everything but the clipping."""
        return Recipe(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            warmup=self.warmup,
            schedule=self.schedule,
            weight_decay=self.weight_decay,
            eps=self.eps,
            correct_bias=self.correct_bias,
        )

    def clipping(self, parts: Components) -> Clipping:
        """Clip the whole gradient to ``max_norm``."""
        return Clipping(parts=regroup(parts, "global"), max_norm=self.max_norm)
