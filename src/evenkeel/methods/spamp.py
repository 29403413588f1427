"""SPAMP: gradients above their usual norm are flattened, and brought down to it."""

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

__all__ = ["GradientShaping"]


@final
@dataclass(frozen=True, kw_only=True)
class GradientShaping(Method):
    r"""Raise the entries of a tensor's gradient to a power below 1 where its norm is above its running mean.

    For the gradient :math:`g` of each tensor, at its step :math:`t`:

    .. math::

        \tau_t = \beta \tau_{t-1} + (1 - \beta) \lVert g \rVert, \qquad
        \alpha_t = h\left(\frac{\lVert g \rVert}{\tau_t}\right), \qquad
        \tilde g = \mathrm{sign}(g) \, |g|^{\alpha_t}

        g \leftarrow \tilde g \cdot \min\left(1, \frac{\tau_t}{\lVert \tilde g \rVert}\right)

    Only these equations could be found, and not the paper's text; they were read in summaries by others (zij by J. Ali,
    Moonlight's review), which agree with each other and with the abstract. **What they leave open was chosen here:**

    - :math:`h`, of which they say that it is fixed, falls, and lies between 0.7 and 1. Here it is
      :math:`h(z) = a + (1 - a) \min(1, 1 / z)` with the least exponent :math:`a`: 1 up to the threshold, so that usual
      gradients are left alone, and from there falling towards :math:`a`.
    - :math:`\tau_0`: the first norm of a tensor begins its average.
    - :math:`\beta`: between 0.9 and 0.999 in the paper, 0.99 here.
    - A "layer" is a tensor; cut parts of a fused tensor are tensors of their own, as elsewhere in evenkeel.

    Entries below 1, which those of gradients nearly always are, grow by the power, so that the norm above the threshold
    ends at :math:`\tau_t` itself: what the power changes is how unequal the entries are. The threshold learns from
    norms before they are changed. A norm that is 0 or not finite tells nothing and is left alone. Averages are written
    into checkpoints. This decides clipping: nothing is clipped beside it. Costs a power for every entry.

    Source: You & Liu 2025, arXiv 2510.01578, as far as told above.

    Attributes:
        beta: :math:`\beta`, the weight of the past; from 0 to below 1. With 0 nothing is changed.
        exponent: :math:`a`, the least exponent; above 0 and up to 1, 0.7 in the paper. With 1 nothing is flattened,
            and every tensor is clipped at its running mean.

    Raises:
        MethodError: if a value is not as described.
    """

    name: ClassVar[str] = "spamp"
    summary: ClassVar[str] = "gradients above their tensor's mean norm flattened by a power, and brought down to it"
    source: ClassVar[str] = "You & Liu 2025, arXiv 2510.01578, by summaries of it"
    owns: ClassVar[frozenset[Owned]] = frozenset({"clipping"})
    touches: ClassVar[frozenset[Touched]] = frozenset({"gradients"})

    beta: float = 0.99
    exponent: float = 0.7

    def __post_init__(self) -> None:
        check_number(self.name, "beta", self.beta, least=0, below=1, advice="the paper has 0.9 to 0.999")
        check_number(self.name, "exponent", self.exponent, above=0, most=1, advice="0.7 is the paper's least")

    def clipping(self, parts: Components) -> Clipping:
        """Clip nothing before gradients are shaped."""
        return Clipping(parts=parts, max_norm=math.inf)

    def begin(self, setting: Setting) -> Session:
        """Return the session that shapes gradients."""
        return _ShapingSession(self)


@final
class _ShapingSession(Session):
    """Flattens gradients and bounds their norms."""

    def __init__(self, method: GradientShaping) -> None:
        self._method = method
        self._rows = ComponentRows(1)  # the threshold; 0 where it was not begun

    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        norms = grad_norms(step.parts)  # [C]
        usable = norms.isfinite() & (norms > 0)
        before = self._rows.of(step.parts, norms)[:, 0]
        moved = torch.where(before > 0, self._method.beta * before + (1 - self._method.beta) * norms, norms)
        thresholds = torch.where(usable, moved, before)
        self._rows.keep(step.parts, thresholds[:, None])

        above = usable & (norms > thresholds)
        least = self._method.exponent
        exponents = least + (1 - least) * (thresholds / norms).clamp(max=1.0)
        told = (above.unbind(), exponents.unbind(), thresholds.unbind())
        for part, *of_part in zip(step.parts, *told, strict=True):
            for gradient in part.gradients():
                gradient.copy_(_shaped(gradient, *of_part))

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._rows.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._rows.load_state_dict(state["rows"])


def _shaped(gradient: Tensor, above: Tensor, exponent: Tensor, threshold: Tensor) -> Tensor:
    """Return a gradient raised to a power and cut to a norm where ``above``, else as it is; in float32 at least."""
    wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    above, exponent, threshold = (one.to(wide.device) for one in (above, exponent, threshold))
    shaped = wide.sign() * wide.abs().pow(exponent.to(wide.dtype))
    norm = shaped.square().sum().sqrt()
    return torch.where(above, shaped * (threshold / norm).clamp(max=1.0).to(wide.dtype), wide)
