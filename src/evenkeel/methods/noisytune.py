"""NoisyTune: a little noise on the pretrained weights before fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from evenkeel.methods._contract import Method
from evenkeel.methods._options import check_number
from evenkeel.methods._session import Session
from evenkeel.methods._setting import Setting

__all__ = ["NoisyTune"]


@final
@dataclass(frozen=True, kw_only=True)
class NoisyTune(Method):
    r"""Add uniform noise to every pretrained weight once, before training, in proportion to its tensor's spread.

    .. math::

        W \leftarrow W + U\left(-\tfrac{\lambda}{2}, \tfrac{\lambda}{2}\right) \cdot \mathrm{std}(W)

    for each component :math:`W` (of a fused tensor, each part; a bias or a norm is one as well), with the standard
    deviation over its entries, of which there must be two. What is constant, such as norms that were never trained, is
    left as it is. The head of a classifier is new and gets none; that of a causal language model is pretrained, and
    does. What is frozen stays as it is. Draws and deviations are made on the CPU, alike on every device and rank, and
    not from torch's global generator.

    Source: Wu et al. 2022, arXiv 2202.12024, section 2, equation 1.

    Attributes:
        strength: :math:`\lambda`, from 0, which is no noise; 0.1 to 0.2 in the paper.

    Raises:
        MethodError: if ``strength`` is not as described.
    """

    name: ClassVar[str] = "noisytune"
    summary: ClassVar[str] = "uniform noise of 0.15 times its tensor's deviation on every weight, before training"
    source: ClassVar[str] = "Wu et al. 2022, arXiv 2202.12024"

    strength: float = 0.15

    def __post_init__(self) -> None:
        check_number(self.name, "strength", self.strength, least=0, advice="0.1 to 0.2 are usual")

    @torch.no_grad()
    def begin(self, setting: Setting) -> Session:
        """Add the noise."""
        for part in setting.parts if self.strength else ():
            if part.role == "head" and setting.problem != "causal-lm":
                continue
            generator = setting.generator(self.name, part.name)
            for piece in part.pieces:
                for view in piece.of(piece.tensor()):
                    view.add_(self._noise(view.cpu(), generator).to(view))
        return Session()

    def _noise(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Draw the noise of a tensor, in float64."""
        even = torch.rand(weight.shape, generator=generator, dtype=torch.float64) - 0.5
        spread = weight.double().std() if weight.numel() > 1 else 0.0
        return even * self.strength * spread
