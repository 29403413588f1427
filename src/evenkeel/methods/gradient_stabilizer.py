"""GradientStabilizer: the direction of a gradient is kept, and its norm is replaced."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from evenkeel.clipping import grad_norms
from evenkeel.methods._component_rows import ComponentRows
from evenkeel.methods._contract import Clipping, Method, Owned, Touched
from evenkeel.methods._options import check_number
from evenkeel.methods._session import Session
from evenkeel.methods._setting import Setting, Step
from evenkeel.partition import Components

__all__ = ["GradientStabilizer"]


@final
@dataclass(frozen=True, kw_only=True)
class GradientStabilizer(Method):
    r"""Give every tensor's gradient a norm that running statistics of its norms tell, instead of its own.

    For the gradient :math:`g` of each tensor, at its step :math:`t`:

    .. math::

        m \leftarrow \gamma_1 m + (1 - \gamma_1) \lVert g \rVert, \qquad
        v \leftarrow \gamma_2 v + (1 - \gamma_2) \lVert g \rVert^2

        g \leftarrow \frac{g}{\max(\lVert g \rVert, \epsilon)} \cdot
        \frac{m / (1 - \gamma_1^t)}{\sqrt{v / (1 - \gamma_2^t)} + \epsilon}

    The new norm has no unit: it is 1 while norms stay as they are, and less than 1 after a fall. As a spike grows, it
    tends to :math:`(1 - \gamma_1) / (1 - \gamma_1^t) \cdot \sqrt{(1 - \gamma_2^t) / (1 - \gamma_2)}`, late in training
    and with the published values 12.6 (a comment of the published code says that it is at most 1). What is zero but for
    rounding, as the gradient of a key's bias, becomes as long as any other; Adam by itself does the same to it.

    This takes the place of clipping, and nothing is clipped, unless another method of a mix decides that: gradients are
    clipped first then, as the authors say. A norm that is 0 or not finite tells nothing, and leaves the gradient as it
    is. Cut parts of a fused tensor are tensors of their own, as they are where projections are separate. Averages are
    written into checkpoints.

    Rule and values are those of the authors' published code. Of the paper nothing but the abstract could be read here,
    which agrees with it; an earlier version of the paper (Stable-SPAM, where this is called AdaGN) has the decays 0.7
    and 0.9, and two more measures beside it, which are not here.

    Source: Huang et al. 2026, arXiv 2502.17055, by its published code (TianjinYellow/GradientStabilizer on GitHub).

    Attributes:
        gamma1: :math:`\gamma_1`, the weight of the past in the mean norm; from 0 to below 1, 0.6 in the published code.
        gamma2: :math:`\gamma_2`, the same for the mean square; from 0 to below 1, 0.999 in the published code.
        eps: :math:`\epsilon`, positive; 1e-12 in the published code. Gradients far shorter than it are left short.

    Raises:
        MethodError: if a value is not as described.
    """

    name: ClassVar[str] = "gradient-stabilizer"
    summary: ClassVar[str] = "each tensor's gradient keeps its direction and gets a norm from running statistics"
    source: ClassVar[str] = "Huang et al. 2026, arXiv 2502.17055"
    otherwise: ClassVar[frozenset[Owned]] = frozenset({"clipping"})
    touches: ClassVar[frozenset[Touched]] = frozenset({"gradients"})
    conflicts: ClassVar[Mapping[str, str]] = {"spamp": "each gives the gradient of every tensor another norm"}

    gamma1: float = 0.6
    gamma2: float = 0.999
    eps: float = 1e-12

    def __post_init__(self) -> None:
        check_number(self.name, "gamma1", self.gamma1, least=0, below=1, advice="0.6 is the published one")
        check_number(self.name, "gamma2", self.gamma2, least=0, below=1, advice="0.999 is the published one")
        check_number(self.name, "eps", self.eps, above=0, advice="1e-12 is the published one")

    def clipping(self, parts: Components) -> Clipping:
        """Clip nothing."""
        return Clipping(parts=parts, max_norm=math.inf)

    def begin(self, setting: Setting) -> Session:
        """Return the session that rescales gradients."""
        return _StabilizingSession(self)


@final
class _StabilizingSession(Session):
    """Replaces the norms of gradients."""

    def __init__(self, method: GradientStabilizer) -> None:
        self._method = method
        self._rows = ComponentRows(3)  # mean norm, mean square, steps that told something

    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        norms = grad_norms(step.parts)  # [C]
        for part, factor in zip(step.parts, self._factors(step.parts, norms).unbind(), strict=True):
            for gradient in part.gradients():
                gradient.mul_(factor.to(gradient.device, gradient.dtype))

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._rows.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._rows.load_state_dict(state["rows"])

    def _factors(self, parts: Components, norms: Tensor) -> Tensor:
        """Take norms into the averages, and return what gradients are multiplied by, both of shape ``[C]``."""
        method = self._method
        mean, square, count = self._rows.of(parts, norms).unbind(1)
        usable = norms.isfinite() & (norms > 0)
        mean = torch.where(usable, method.gamma1 * mean + (1 - method.gamma1) * norms, mean)
        square = torch.where(usable, method.gamma2 * square + (1 - method.gamma2) * norms.square(), square)
        count = count + usable
        self._rows.keep(parts, torch.stack([mean, square, count], dim=1))
        first, second = mean / _share(method.gamma1, count), square / _share(method.gamma2, count)
        lengths = first / (second.sqrt() + method.eps)
        return torch.where(usable, lengths / norms.clamp_min(method.eps), 1.0)


def _share(decay: float, count: Tensor) -> Tensor:
    """Return ``1 - decay ** count``, exactly where the decay is near 1."""
    return -torch.expm1(count * (math.log(decay) if decay else -math.inf))
