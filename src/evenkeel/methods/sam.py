"""Sharpness-aware minimisation: the gradient is taken where the loss is worst nearby."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast, final

import torch
from torch import Tensor

from evenkeel.methods._contract import Method, Owned
from evenkeel.methods._options import check_flag, check_number
from evenkeel.methods._session import Session
from evenkeel.methods._setting import Setting, Step

__all__ = ["SharpnessAwareMinimization"]


@final
@dataclass(frozen=True, kw_only=True)
class SharpnessAwareMinimization(Method):
    r"""Step by the gradient at the weights in whose direction the loss rises fastest, a distance :math:`\rho` away.

    With the gradient :math:`g` of all that is trained, at weights :math:`w`,

    .. math:: e = \rho \frac{g}{\lVert g \rVert_2}, \qquad w \leftarrow \mathrm{AdamW}(w, \nabla L(w + e))

    or with ``adaptive=True`` (ASAM), where the distance is measured in shares of the weights,

    .. math:: e = \rho \frac{T_w^2 g}{\lVert T_w g \rVert_2}, \qquad T_w = |w| + \eta \text{ for weights, } 1 \text{ for
        biases}

    Norms are over all parameters together, not clipped, in float32; the gradient at :math:`w + e` is clipped as always.
    Takes every forward and backward pass twice, and a copy of the weights during the second; the second draws its own
    dropout. Over several ranks both gradients are those of the whole batch (the paper lets each rank go its own way).
    Where the gradient is 0, so is :math:`e`.

    Source: Foret et al. 2021, arXiv 2010.01412, equation 2 and algorithm 1; Kwon et al. 2021, arXiv 2102.11600 (ASAM),
        with biases and :math:`\eta` as in its published code. Bahri et al. 2022, arXiv 2110.08529, fine-tune language
        models by it.

    Attributes:
        rho: :math:`\rho`, 0 or more; the paper's 0.05, with ``adaptive`` rather 0.5. With 0 the second gradient is the
            first, but for dropout.
        adaptive: whether the distance is measured in shares of the weights.
        eta: :math:`\eta`, 0 or more, for ``adaptive`` alone; 0.01 in the published code.

    Raises:
        MethodError: if an option is none of these.
    """

    name: ClassVar[str] = "sam"
    summary: ClassVar[str] = "each step by the gradient at the worst weights nearby, which is taken in a second pass"
    source: ClassVar[str] = "Foret et al. 2021, arXiv 2010.01412; Kwon et al. 2021, arXiv 2102.11600"
    owns: ClassVar[frozenset[Owned]] = frozenset({"second pass"})

    rho: float = 0.05
    adaptive: bool = False
    eta: float = 0.01

    def __post_init__(self) -> None:
        check_number(self.name, "rho", self.rho, least=0, advice="0.05 is the paper's, 0.5 that of adaptive=true")
        check_flag(self.name, "adaptive", self.adaptive, advice="true measures in shares of the weights (ASAM)")
        check_number(self.name, "eta", self.eta, least=0, advice="0.01 is the published code's")

    def begin(self, setting: Setting) -> Session:
        """Return the session that goes up and comes back."""
        return _SharpSession(self)


@final
class _SharpSession(Session):
    """Moves the weights uphill, and back to where they were, bit for bit."""

    def __init__(self, method: SharpnessAwareMinimization) -> None:
        self._method = method
        self._left: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def ascend(self, step: Step) -> None:
        weights = [one for _, parameters in step.by_rate() for one in parameters if one.grad is not None]
        if not weights:
            return
        self._left = [(weight, weight.detach().clone()) for weight in weights]
        self._stretch(weights, step)
        distance = self._method.rho / (_norm([_gradient(weight) for weight in weights]) + _TINY)
        self._stretch(weights, step)
        for weight in weights:
            weight.add_(_gradient(weight).mul_(distance.to(weight.device)))

    @torch.no_grad()
    def descend(self) -> None:
        left, self._left = self._left, []
        for weight, before in left:
            weight.copy_(before)

    def _stretch(self, weights: Sequence[Tensor], step: Step) -> None:
        """Multiply gradients by the sizes of their weights, where that is asked for; they are dropped afterwards."""
        if not self._method.adaptive:
            return
        chosen = {id(one) for part in step.parts if part.kind == "weight" for one in part.parameters}
        for weight in weights:
            if id(weight) in chosen:
                _gradient(weight).mul_(weight.detach().abs().add_(self._method.eta))


_TINY = 1e-12  # what the published code adds to a norm, which may be 0


def _gradient(weight: Tensor) -> Tensor:
    return cast(Tensor, weight.grad)


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the norm of all tensors together, 0-dimensional, in float32 at least, on the device of the first."""
    wide = functools.reduce(torch.promote_types, {tensor.dtype for tensor in tensors}, torch.float32)
    norms = torch._foreach_norm(tuple(tensors), dtype=wide)
    total: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(tensors[0].device) for norm in norms]))
    return total
