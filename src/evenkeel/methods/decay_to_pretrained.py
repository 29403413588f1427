"""Decay to the pretrained weights: L2-SP, decoupled from the gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from evenkeel.errors import MethodError
from evenkeel.methods._contract import Method, Recipe, Touched
from evenkeel.methods._named import all_placed, parameters_of
from evenkeel.methods._options import check_number
from evenkeel.methods._session import Session
from evenkeel.methods._setting import Setting, Step

__all__ = ["DecayToPretrained"]


@final
@dataclass(frozen=True, kw_only=True)
class DecayToPretrained(Method):
    r"""Pull all weights but the head's to where training found them, in place of weight decay, which pulls to 0.

    Right before each step of the optimizer, with the learning rate :math:`\eta` that the weight has in it and the
    weights :math:`w_0` with which the training starts,

    .. math:: w \leftarrow w - \eta \lambda (w - w_0)

    so that the pull does not pass through Adam's moments, as a penalty in the loss would. Weights that have no gradient
    in a step are left alone, as the optimizer leaves them. Of a causal language model the head is pretrained too, and
    is pulled like the rest.

    The optimizer's own weight decay is set to 0, as in the published script. That script leaves biases and layer norms
    alone (they have no weight decay) and pulls the head as well, by an index that is one too high; here it is as the
    paper and L2-SP describe it. A copy of the weights is kept in memory and in checkpoints. What another method drew
    anew before training is pulled to what was drawn.

    Source: Zhang et al. 2021, arXiv 2006.05987, section 7, and its published script ``pretrained_wd.sh``; Li et al.
        2018, arXiv 1802.01483, section 3 (L2-SP, there a penalty in the loss).

    Attributes:
        strength: :math:`\lambda`, 0 or more; 1e-3 in the published script. 0 pulls nothing.

    Raises:
        MethodError: if ``strength`` is no such number.
    """

    name: ClassVar[str] = "decay-to-pretrained"
    summary: ClassVar[str] = "weight decay towards the pretrained weights in place of 0 (L2-SP), not on the head"
    source: ClassVar[str] = "Li et al. 2018, arXiv 1802.01483; Zhang et al. 2021, arXiv 2006.05987"
    touches: ClassVar[frozenset[Touched]] = frozenset({"weights"})

    strength: float = 1e-3

    def __post_init__(self) -> None:
        check_number(
            self.name, "strength", self.strength, least=0, advice="1e-3 is the published script's, and 0 pulls nothing"
        )

    def check(self, setting: Setting) -> None:
        """Refuse a training of nothing but the head, which has no pretrained weights."""
        _pulled(setting)

    def recipe(self) -> Recipe:
        """Lay down that nothing decays to 0."""
        return Recipe(weight_decay=0.0)

    def begin(self, setting: Setting) -> Session:
        """Return the session that pulls."""
        return _DecaySession(self.strength, _pulled(setting))


def _pulled(setting: Setting) -> dict[str, Tensor]:
    new = {"head"} if setting.problem != "causal-lm" else set()
    found = parameters_of(part for part in setting.parts if part.role not in new)
    if not found:
        raise MethodError(
            f"{DecayToPretrained.name} pulls weights to their pretrained values, and nothing but the head is trained; "
            "release the rest of the model, or leave the method out"
        )
    return found


@final
class _DecaySession(Session):
    """Pulls parameters to where the training found them."""

    def __init__(self, strength: float, pulled: Mapping[str, Tensor]) -> None:
        self._strength, self._pulled = strength, dict(pulled)
        self._start: dict[str, Tensor] = {}
        self._goals: dict[int, Tensor] = {}

    def start(self) -> None:
        self._aim({name: parameter.detach().clone() for name, parameter in self._pulled.items()})

    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        for rate, parameters in step.by_rate():
            moved = [one for one in parameters if one.grad is not None and id(one) in self._goals]
            if moved:
                torch._foreach_lerp_(moved, [self._goals[id(one)] for one in moved], rate * self._strength)

    def state_dict(self) -> dict[str, Any]:
        return {"start": self._start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._aim(all_placed(DecayToPretrained.name, state["start"], self._pulled))

    def _aim(self, start: dict[str, Tensor]) -> None:
        self._start = start
        self._goals = {id(self._pulled[name]): goal for name, goal in start.items()}
