"""Stochastic weight averaging: the mean of the weights over the last part of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from torch.optim.swa_utils import get_swa_multi_avg_fn

from evenkeel.methods._averaging import AveragingSession
from evenkeel.methods._contract import Method, Touched
from evenkeel.methods._options import check_number
from evenkeel.methods._session import Session
from evenkeel.methods._setting import Setting, Step

__all__ = ["StochasticWeightAveraging"]


@final
@dataclass(frozen=True, kw_only=True)
class StochasticWeightAveraging(Method):
    r"""End the training with the plain mean of its weights from some step on.

    With :math:`n` weights averaged so far, after every ``every``-th step :math:`i` past the share ``start`` of the
    training,

    .. math:: \bar w \leftarrow \frac{n \bar w + w_i}{n + 1}

    The training itself is not changed: it goes on from its own weights, and evaluations while it goes on see the
    averages. The paper averages while the learning rate is constant or cyclical; here the schedule is the training's,
    and with one that falls to 0 the last weights differ little and so does their mean
    (``lr_scheduler_type="constant"`` is the paper's simplest form). The weights at ``start`` themselves do not count,
    as in the published code and in torch; the paper's algorithm 1 counts them.

    Averages are kept in float32 at least, of all that the optimizer holds, and are written into checkpoints. Buffers
    are not averaged: in a model with batch normalisation the statistics stay those of the last weights.

    Source: Izmailov et al. 2018, arXiv 1803.05407, algorithm 1; ``torch.optim.swa_utils``.

    Attributes:
        start: the share of the training after which averaging begins, from 0 to 1; 0.75 in the paper's experiments with
            its budget of 1. With 1 nothing is averaged, and the result is the last weights.
        every: the number of steps from one average to the next, counted from ``start``; the paper averages once an
            epoch or cycle. Where the rest of the training is shorter, nothing is averaged.

    Raises:
        MethodError: if ``start`` is no such number, or ``every`` no whole number from 1.
    """

    name: ClassVar[str] = "swa"
    summary: ClassVar[str] = "the mean of the weights over the last quarter of the training in place of the last ones"
    source: ClassVar[str] = "Izmailov et al. 2018, arXiv 1803.05407"
    touches: ClassVar[frozenset[Touched]] = frozenset({"result"})
    conflicts: ClassVar[Mapping[str, str]] = {"ema": "each ends the training with an average of its own"}

    start: float = 0.75
    every: int = 1

    def __post_init__(self) -> None:
        check_number(self.name, "start", self.start, least=0, most=1, advice="0.75 averages the last quarter")
        check_number(self.name, "every", self.every, least=1, whole=True, advice="1 averages after every step")

    def begin(self, setting: Setting) -> Session:
        """Return the session that averages."""
        mean = get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]
        return AveragingSession(self.name, setting.model, mean, self._due)

    def _due(self, step: Step) -> bool:
        past = step.moment.step + 1 - int(self.start * step.total)  # steps since averaging began
        return past > 0 and past % self.every == 0
