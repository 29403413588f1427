"""Prodigy: Adam that estimates its learning rate while it trains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast, final

from torch.optim import Optimizer

from evenkeel.errors import MethodError, MissingExtraError
from evenkeel.methods._contract import Clipping, Method, Owned, Recipe, Touched
from evenkeel.methods._in_place_of_adamw import groups_of
from evenkeel.methods._options import check_flag, check_number
from evenkeel.methods._session import Session
from evenkeel.methods._setting import Setting
from evenkeel.partition import Components

__all__ = ["Prodigy"]


@final
@dataclass(frozen=True, kw_only=True)
class Prodigy(Method):
    r"""Fine-tune with Adam whose learning rate is an estimate of how far the weights have to go.

    With the gradient :math:`g` of all that is trained, weights :math:`w` that began as :math:`w_0`, and an estimate
    :math:`d` that begins as :math:`d_0`:

    .. math::

        r \leftarrow \sqrt{\beta_2} \, r + \eta d^2 \sum g (w_0 - w), \qquad
        s \leftarrow \sqrt{\beta_2} \, s + \eta d^2 g, \qquad
        d' = \max\left(d, \mathrm{coef} \cdot \frac{r}{\lVert s \rVert_1}\right)

        m \leftarrow \beta_1 m + (1 - \beta_1) d g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2) d^2 g^2, \qquad
        w \leftarrow w - \eta d \left(\frac{m}{\sqrt{v} + d' \epsilon} + \lambda w\right), \qquad d \leftarrow d'

    :math:`\eta` takes the place of the training's learning rate, and is a factor of the estimate: leave it at 1. **The
    training's schedule multiplies it**, as it would any rate; the authors recommend none or cosine
    (``lr_scheduler_type="cosine"``). Where the schedule begins with a warm-up, as in ``prodigy+warmup``, set
    ``safeguard_warmup``: steps at a small factor otherwise raise the estimate. Betas, epsilon and weight decay are the
    training's own.

    The estimate only grows; it is one number for all tensors, so that rates of their own (``llrd``) and stepping in
    backward are refused, and it is not made anew where a phase begins anew. It is written into checkpoints with the
    optimizer. The optimizer is that of the package ``prodigyopt``, by the paper's authors, which waits for the device
    twice for each tensor in each step. Nothing is clipped, unless another method of a mix decides that.

    Source: Mishchenko & Defazio 2023, arXiv 2306.06101, the algorithm for Adam; the package prodigyopt 1.1.2 (MIT),
        whose :math:`d'` before :math:`\epsilon` is :math:`d` in the paper.

    Attributes:
        lr: :math:`\eta`, positive; 1 in the paper.
        d_coef: what the estimate is multiplied by, positive; 1 in the paper. The authors' way to make steps larger or
            smaller: 0.5 to 2.
        d0: :math:`d_0`, positive; 1e-6 in the paper. Too small a value costs steps, too large a one is never undone.
        bias_correction: whether Adam's moments are corrected for having begun at 0; not in the paper.
        safeguard_warmup: whether :math:`s` leaves :math:`\eta` out, which keeps a warm-up from raising the estimate.

    Raises:
        MethodError: if a value is not as described.
        MissingExtraError: at the start of a training, if prodigyopt is not installed.
    """

    name: ClassVar[str] = "prodigy"
    summary: ClassVar[str] = "Adam that estimates its learning rate from how far weights went (needs prodigyopt)"
    source: ClassVar[str] = "Mishchenko & Defazio 2023, arXiv 2306.06101"
    owns: ClassVar[frozenset[Owned]] = frozenset({"update"})
    touches: ClassVar[frozenset[Touched]] = frozenset({"step"})
    otherwise: ClassVar[frozenset[Owned]] = frozenset({"clipping"})
    conflicts: ClassVar[Mapping[str, str]] = {
        "decay-to-pretrained": "it pulls by the learning rate, which with prodigy is a factor of an estimate",
        "gradual-unfreezing": "its phases empty the optimizer's state, of which prodigy's estimate is a part only",
        "llrd": "prodigy estimates one learning rate for all components",
    }

    lr: float = 1.0
    d_coef: float = 1.0
    d0: float = 1e-6
    bias_correction: bool = False
    safeguard_warmup: bool = False

    def __post_init__(self) -> None:
        name = self.name
        check_number(name, "lr", self.lr, above=0, advice="it is a factor of the estimate, and 1 is the paper's")
        check_number(name, "d_coef", self.d_coef, above=0, advice="1 is the paper's, 0.5 to 2 are usual")
        check_number(name, "d0", self.d0, above=0, advice="1e-6 is the paper's")
        check_flag(name, "bias_correction", self.bias_correction, advice="false is the paper's")
        check_flag(name, "safeguard_warmup", self.safeguard_warmup, advice="true is for schedules with a warm-up")

    def check(self, setting: Setting) -> None:
        """Refuse to train without the package."""
        _needs_prodigyopt()

    def recipe(self) -> Recipe:
        """Lay down the learning rate."""
        return Recipe(learning_rate=self.lr)

    def begin(self, setting: Setting) -> Session:
        """Return a session that does nothing: to have one says that the method acts on whole parameters."""
        return Session()

    def clipping(self, parts: Components) -> Clipping:
        """Clip nothing."""
        return Clipping(parts=parts, max_norm=math.inf)

    def optimizer(self, plain: Optimizer) -> Optimizer:
        """Make a Prodigy of the same groups, betas, epsilon and weight decay.

        Args:
            plain: an AdamW without state.

        Returns:
            The optimizer.

        Raises:
            MethodError: if it is another optimizer, has ``amsgrad``, or learning rates that differ.
            MissingExtraError: if prodigyopt is not installed.
        """
        groups = groups_of(self.name, plain, ("lr", "betas", "eps", "weight_decay"))
        rates = sorted({float(group["lr"]) for group in groups})
        if len(rates) > 1:
            raise MethodError(
                f"prodigy estimates one learning rate, and this training has {len(rates)}, from {rates[0]:g} to "
                f"{rates[-1]:g}; give all parameters the same"
            )
        return cast(
            Optimizer,
            _needs_prodigyopt()(
                groups,
                lr=self.lr,
                d_coef=self.d_coef,
                d0=self.d0,
                use_bias_correction=self.bias_correction,
                safeguard_warmup=self.safeguard_warmup,
            ),
        )


def _needs_prodigyopt() -> Any:
    try:
        from prodigyopt import Prodigy as Estimating
    except ImportError as error:
        raise MissingExtraError(
            "prodigy needs the package prodigyopt, which is not installed: pip install 'evenkeel[optimizers]'"
        ) from error
    return Estimating
