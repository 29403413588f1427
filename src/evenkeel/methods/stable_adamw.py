"""StableAdamW: updates are clipped in place of gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

from torch.optim import Optimizer

from evenkeel.methods._contract import Clipping, Method, Owned
from evenkeel.methods._in_place_of_adamw import groups_of
from evenkeel.optim import StableAdamW
from evenkeel.partition import Components

__all__ = ["StableUpdate"]

_SETTINGS = ("lr", "betas", "eps", "weight_decay", "maximize", "foreach")


@final
@dataclass(frozen=True, kw_only=True)
class StableUpdate(Method):
    r"""Fine-tune with AdamW whose learning rate gives way, tensor by tensor, to gradients that come as a surprise.

    .. math::

        \eta = \frac{\mathrm{lr}}{\max(1, R)}, \qquad
        R = \sqrt{\mathrm{mean}\left(\frac{g^2}{\max(\hat v, \epsilon^2)}\right)}

    see :class:`evenkeel.optim.StableAdamW`. Rate, betas, epsilon and weight decay are the training's own. The paper
    lets this take the place of gradient clipping, so that nothing is clipped, unless another method of a mix decides
    that: ``stable-adamw+component-clip`` does both.

    Source: Wortsman et al. 2023, arXiv 2304.13013, algorithm 2 and section 3.5.
    """

    name: ClassVar[str] = "stable-adamw"
    summary: ClassVar[str] = "AdamW with update clipping: surprising gradients slow their tensor down; none is clipped"
    source: ClassVar[str] = "Wortsman et al. 2023, arXiv 2304.13013"
    owns: ClassVar[frozenset[Owned]] = frozenset({"update"})
    otherwise: ClassVar[frozenset[Owned]] = frozenset({"clipping"})

    def clipping(self, parts: Components) -> Clipping:
        """Clip nothing."""
        return Clipping(parts=parts, max_norm=math.inf)

    def optimizer(self, plain: Optimizer) -> Optimizer:
        """Make a StableAdamW of the same groups and settings.

        Args:
            plain: an AdamW without state.

        Returns:
            The optimizer.

        Raises:
            MethodError: if it is another optimizer, or has ``amsgrad``.
        """
        groups = groups_of(self.name, plain, _SETTINGS)
        return StableAdamW(groups, **{name: plain.defaults[name] for name in _SETTINGS})
