"""Child-Tuning without a task: a new random part of all weights is updated in each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from evenkeel.methods._contract import Method, Touched
from evenkeel.methods._options import check_number
from evenkeel.methods._session import Session
from evenkeel.methods._setting import Setting, Step

__all__ = ["ChildTuningF"]


@final
@dataclass(frozen=True, kw_only=True)
class ChildTuningF(Method):
    r"""Keep a random share of the entries of every gradient in each step, and enlarge them by as much as is lost.

    After clipping and before Adam's moments, with a mask that is drawn anew for each step, from a generator of its own
    and alike on every rank,

    .. math:: g \leftarrow \frac{g \odot m}{p}, \qquad m_i \sim \mathrm{Bernoulli}(p)

    so that the gradient is the same in expectation. All parameters are masked, embeddings and head too, and weight
    decay is not, both as in the published code. Adam's second moment sees gradients of a larger variance, so that a
    weight moves less in each step than without the mask.

    Source: Xu et al. 2021, arXiv 2109.05687, section 2.2 and algorithm 1 (Child-Tuning_F).

    Attributes:
        p: the share of the entries that is kept, above 0 and up to 1; the paper searches 0.2, 0.3 and 0.4. 1 masks
            nothing.

    Raises:
        MethodError: if ``p`` is no such number.
    """

    name: ClassVar[str] = "child-tuning-f"
    summary: ClassVar[str] = "in each step a random share of the gradient's entries, a new one every time"
    source: ClassVar[str] = "Xu et al. 2021, arXiv 2109.05687"
    touches: ClassVar[frozenset[Touched]] = frozenset({"gradients"})

    p: float = 0.3

    def __post_init__(self) -> None:
        check_number(self.name, "p", self.p, above=0, most=1, advice="the paper searches 0.2, 0.3 and 0.4")

    def begin(self, setting: Setting) -> Session:
        """Return the session that masks."""
        return _MaskingSession(self.p)


@final
class _MaskingSession(Session):
    """Masks gradients at random."""

    def __init__(self, share: float) -> None:
        self._share = share

    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        generators: dict[torch.device, torch.Generator] = {}
        gradients = (one.grad for _, parameters in step.by_rate() for one in parameters if one.grad is not None)
        for gradient in gradients:
            device = gradient.device
            if device not in generators:
                generators[device] = step.moment.generator(ChildTuningF.name, device, alike=True)
            mask = torch.empty_like(gradient).bernoulli_(self._share, generator=generators[device])
            gradient.mul_(mask).div_(self._share)
