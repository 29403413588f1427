"""Updates limited component by component, relative to the weights that they change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, final, get_args

from torch.optim import Optimizer

from evenkeel.clipping import MaxNorm, as_threshold, check_max_norm
from evenkeel.errors import ThresholdError
from evenkeel.methods._contract import Clipping, Method, Owned
from evenkeel.methods._options import check_choice
from evenkeel.methods._setting import Setting
from evenkeel.optim import UpdateLimit
from evenkeel.partition import Components, regroup

__all__ = ["ComponentUpdateClipping"]

Partition = Literal["tensor", "module", "layer", "role", "global"]


@final
@dataclass(frozen=True, kw_only=True)
class ComponentUpdateClipping(Method):
    r"""Fine-tune everything, and let no step change a component by more than a share of its weights' norm.

    .. math::

        \Delta_c = -\eta u_c \min\left(1, \frac{r (\lVert w_c \rVert + f \sqrt{n_c})}{\eta \lVert u_c \rVert}\right),
        \qquad u = \frac{\hat m}{\sqrt{\hat v} + \epsilon}

    for every component :math:`c` of :math:`n_c` entries, with Adam's direction :math:`u`; weight decay gives way with
    the step. What clipping gradients cannot do, because Adam cancels the scale of a gradient, this does: it bounds what
    reaches the weights. See :class:`evenkeel.optim.UpdateLimit`. Where the optimizer is not AdamW, or steps happen in
    backward, what is measured is the change that it makes, weight decay and all.

    Source: ours. Prior art, and what is different: LARS (You et al. 2017, arXiv 1708.03888) and LAMB (You et al. 2020,
        arXiv 1904.00962) rescale every step to the weights' norm, small ones upwards too; LAMBC (Fong et al. 2020,
        arXiv 2011.13584) clips that ratio, and still replaces the learning rate by it; Adafactor (Shazeer & Stern 2018,
        arXiv 1804.04235) takes steps relative to the weights, and limits its direction by a constant; StableAdamW
        (Wortsman et al. 2023, arXiv 2304.13013) limits by the second moment, blind to the weights; AGC (Brock et al.
        2021, arXiv 2102.06171) limits gradients by the weights, which Adam undoes.

    Attributes:
        max_update: :math:`r`, the largest norm of a step relative to the weights' norm; positive, ``inf`` limits
            nothing; or numbers by role or path.
        max_norm: the norm that each component's gradient may have before the step, or norms by role or path; None for
            any.
        floor: :math:`f`, what each entry of the weights counts beside its own size, root mean square; positive.
        decay: whether :math:`r` falls with the learning rate, as a share of the peak of its schedule.
        by: what counts as one component, see :func:`evenkeel.components`; coarser ones are ablations.

    Raises:
        ThresholdError: if ``max_update``, ``max_norm``, ``floor`` or ``decay`` is not as described.
        MethodError: if ``by`` is unknown.
    """

    name: ClassVar[str] = "component-update-clip"
    summary: ClassVar[str] = "no step changes a component by more than 0.003 times its weights' norm"
    source: ClassVar[str] = "ours; nearest is LAMBC, Fong et al. 2020, arXiv 2011.13584"
    owns: ClassVar[frozenset[Owned]] = frozenset({"clipping", "update"})

    max_update: float | Mapping[str, float] = 3e-3
    max_norm: MaxNorm | None = None
    floor: float = 1e-3
    decay: bool = False
    by: Partition = "tensor"

    def __post_init__(self) -> None:
        try:
            _ = self._limit
            check_max_norm(self._max_norm)
        except ThresholdError as error:
            raise ThresholdError(f"{self.name}: {error}") from error
        check_choice(self.name, "by", self.by, get_args(Partition))  # now, not at the first step of a study

    @property
    def _limit(self) -> UpdateLimit:
        return UpdateLimit(self.max_update, floor=self.floor, decay=self.decay)

    @property
    def _max_norm(self) -> MaxNorm:
        return math.inf if self.max_norm is None else self.max_norm

    def check(self, setting: Setting) -> None:
        """Refuse numbers that name a component which the model does not have, or leave one out."""
        parts = regroup(setting.parts, self.by)
        self._limit.check(parts)
        as_threshold(self._max_norm, parts)

    def clipping(self, parts: Components) -> Clipping:
        """Limit the steps of every component, and clip its gradient where that was asked for."""
        limit = None if self._limit.off else self._limit
        return Clipping(parts=regroup(parts, self.by), max_norm=self._max_norm, max_update=limit)

    def optimizer(self, plain: Optimizer) -> Optimizer:
        """Return it as it is: whoever trains limits its steps, as :meth:`clipping` says.

        Args:
            plain: the training's optimizer.

        Returns:
            The same.
        """
        return plain
