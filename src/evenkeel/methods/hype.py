"""HyPe: noise on the hidden states that enter each block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final, get_args

import torch
from torch import Tensor, nn

from evenkeel.errors import MethodError
from evenkeel.methods._changes import Changes
from evenkeel.methods._contract import Method, Touched
from evenkeel.methods._draws import Moment
from evenkeel.methods._forward_draws import ForwardDraws
from evenkeel.methods._hidden_states import changed_input
from evenkeel.methods._options import check_choice, check_number
from evenkeel.methods._session import Session
from evenkeel.methods._setting import Setting
from evenkeel.partition import blocks

__all__ = ["HyPe"]

Noise = Literal["uniform", "normal"]


@final
@dataclass(frozen=True, kw_only=True)
class HyPe(Method):
    r"""Add noise to the hidden states that enter each block in training, in place of dropout.

    With the hidden states :math:`h_i` before block :math:`f_i`,

    .. math:: h_{i+1} = f_i(h_i + z_i), \qquad z_i \sim U(-s, s) \text{ or } N(0, s^2)

    drawn anew for every block, position, unit and pass; there is none in evaluation. All dropout is off during
    training. The uniform noise of the authors' code lies between 0 and :math:`s`; this is the paper's. In half
    precision noise as small as the paper's drowns in rounding: little is left of it then, and no dropout.

    Source: Yuan et al. 2022, arXiv 2212.08853, the definition of HyPe.

    Attributes:
        scale: :math:`s`, from 0 on; the paper's are 1e-5 and 1e-4. 0 only turns dropout off.
        noise: ``"uniform"`` or ``"normal"``; the paper reports both.

    Raises:
        MethodError: if ``scale`` is negative or no number, or the noise is unknown.
    """

    name: ClassVar[str] = "hype"
    summary: ClassVar[str] = "noise on the hidden states that enter each block, in place of dropout"
    source: ClassVar[str] = "Yuan et al. 2022, arXiv 2212.08853"
    touches: ClassVar[frozenset[Touched]] = frozenset({"forward"})

    scale: float = 1e-5
    noise: Noise = "normal"

    def __post_init__(self) -> None:
        check_number(self.name, "scale", self.scale, least=0, advice="1e-5 and 1e-4 are usual")
        check_choice(self.name, "noise", self.noise, get_args(Noise))

    def check(self, setting: Setting) -> None:
        """Refuse models without blocks."""
        if not blocks(setting.model):
            raise MethodError(
                "hype adds noise before each block, and this model has no blocks; use a method that does not go by "
                "blocks, such as r3f"
            )

    def begin(self, setting: Setting) -> Session:
        """Turn dropout off, and return the session that adds the noise."""
        return _HyPeSession(self, setting)


@final
class _HyPeSession(Session):
    """Adds noise before each block of a model in training."""

    def __init__(self, method: HyPe, setting: Setting) -> None:
        self._method, self._draws, self._changes = method, ForwardDraws(method.name), Changes()
        self._changes.no_dropout(setting.model)
        if method.scale > 0:
            modules = {id(block.module): block.module for block in blocks(setting.model)}  # one may be several layers
            for module in modules.values():
                self._changes.hook(module.register_forward_pre_hook(self._disturb, with_kwargs=True))

    def before_forward(self, moment: Moment) -> None:
        self._draws.begin(moment)

    def close(self) -> None:
        self._changes.undo()

    def _disturb(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return changed_input(args, kwargs, self._with_noise) if block.training else None

    def _with_noise(self, states: Tensor) -> Tensor:
        noise = torch.empty_like(states.detach(), memory_format=torch.contiguous_format)
        generator = self._draws.on(states.device)
        if self._method.noise == "normal":
            return states + noise.normal_(generator=generator) * self._method.scale
        return states + noise.uniform_(-1, 1, generator=generator) * self._method.scale
