"""The exponential moving average of the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from evenkeel.methods._averaging import AveragingSession
from evenkeel.methods._contract import Method, Touched
from evenkeel.methods._options import check_number
from evenkeel.methods._session import Session
from evenkeel.methods._setting import Setting, Step

__all__ = ["ExponentialMovingAverage"]


@final
@dataclass(frozen=True, kw_only=True)
class ExponentialMovingAverage(Method):
    r"""End the training with an average of its weights that forgets the early ones.

    With the weights :math:`w_t` after step :math:`t = 1, 2, \dots` and the decay :math:`d`,

    .. math::

        \bar w_t = \frac{1 - d}{1 - d^t} \sum_{i=1}^{t} d^{t-i} w_i
        = d_t \bar w_{t-1} + (1 - d_t) w_t, \qquad d_t = \frac{d - d^t}{1 - d^t}

    The division by :math:`1 - d^t` is Adam's correction of the bias towards the beginning. Fine-tuning often takes
    fewer steps than the average looks back, :math:`1 / (1 - d)`, and is then averaged as a whole; without the
    correction, as in ``torch.optim.swa_utils`` by itself, the first weights would have the share :math:`d^{t-1}`, which
    in a short training is nearly everything. With ``decay=0`` the average is the weights themselves.

    The training itself is not changed: it goes on from its own weights, and evaluations while it goes on see the
    averages. Averages are kept in float32 at least, of all that the optimizer holds, and are written into checkpoints.
    Buffers are not averaged.

    Source: Kingma & Ba 2015, arXiv 1412.6980, section 7.2; after Polyak & Juditsky 1992.

    Attributes:
        decay: :math:`d`, from 0 to below 1; 0.999 is usual.

    Raises:
        MethodError: if ``decay`` is no such number.
    """

    name: ClassVar[str] = "ema"
    summary: ClassVar[str] = "a moving average of the weights in place of the last ones"
    source: ClassVar[str] = "Kingma & Ba 2015, arXiv 1412.6980, section 7.2"
    touches: ClassVar[frozenset[Touched]] = frozenset({"result"})

    decay: float = 0.999

    def __post_init__(self) -> None:
        check_number(self.name, "decay", self.decay, least=0, below=1, advice="0.999 looks back about 1000 steps")

    def begin(self, setting: Setting) -> Session:
        """Return the session that averages."""
        return AveragingSession(self.name, setting.model, self._average, _always)

    def _average(self, averages: list[Tensor], weights: list[Tensor], count: int) -> None:
        forgotten = self.decay ** (count + 1)
        move = get_ema_multi_avg_fn((self.decay - forgotten) / (1 - forgotten))  # type: ignore[no-untyped-call]
        move(averages, weights, count)


def _always(_: Step) -> bool:
    return True
