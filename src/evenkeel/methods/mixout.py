"""Mixout: in every pass some of the trained weights are those with which training started."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast, final

import torch
from torch import Tensor, nn

from evenkeel.errors import MethodError
from evenkeel.methods._changes import Changes
from evenkeel.methods._contract import Method, Touched
from evenkeel.methods._draws import Moment
from evenkeel.methods._forward_draws import ForwardDraws
from evenkeel.methods._named import all_placed, parameters_of
from evenkeel.methods._options import check_number
from evenkeel.methods._session import Session
from evenkeel.methods._setting import Setting
from evenkeel.methods._stand_in import put

__all__ = ["Mixout"]


@final
@dataclass(frozen=True, kw_only=True)
class Mixout(Method):
    r"""In training, give some input features of every linear layer the weights with which the training started.

    With the weights :math:`W` of a layer and :math:`W_0` with which the training started, a forward pass computes with

    .. math::
        \tilde W = \frac{(1 - M) \odot W_0 + M \odot W - p W_0}{1 - p} = W_0 + \frac{M}{1 - p} \odot (W - W_0),
        \qquad M \sim \operatorname{Bernoulli}(1 - p)

    so that :math:`\tilde W` is :math:`W` on average. :math:`M` has one entry for each input feature, which all outputs
    share, as dropout of that feature would; it is drawn anew in each layer and pass. Biases are not mixed, nothing is
    mixed in evaluation, and all dropout is off during training, whose place this takes.

    Mixed are the weights of all ``Linear`` layers, and of GPT-2's ``Conv1D``, that are trained and in no other place of
    the model: a head that is tied to the embeddings is left alone, as embeddings are not mixed either. New heads and
    poolers are mixed with their own first values, as in the published scripts. The gradient is that of the formula; in
    the authors' code it lacks the factor :math:`1 / (1 - p)`, which Adam does not see but clipping does.

    Costs a copy of these weights, also in checkpoints.

    Source: Lee et al. 2020, arXiv 1909.11299, the definition of mixout, and the authors' code for which
        entries share a mask.

    Attributes:
        p: the share of input features that get their first weights, from 0 to below 1. The paper takes 0.7 to 0.9; the
            default is what later comparisons with bias-corrected Adam took (Zhang et al. 2021, arXiv 2006.05987), as
            ``full`` has it here. 0 only turns dropout off.

    Raises:
        MethodError: if ``p`` is no such number.
    """

    name: ClassVar[str] = "mixout"
    summary: ClassVar[str] = "a random share p of each layer's input features get the pretrained weights"
    source: ClassVar[str] = "Lee et al. 2020, arXiv 1909.11299"
    touches: ClassVar[frozenset[Touched]] = frozenset({"forward"})

    p: float = 0.1

    def __post_init__(self) -> None:
        check_number(self.name, "p", self.p, least=0, below=1, advice="0.1 and 0.7 to 0.9 are usual")

    def check(self, setting: Setting) -> None:
        """Refuse models of which no linear layer is trained."""
        if not _layers(setting):
            raise MethodError(
                "mixout mixes the weights of linear layers, and none is trained that is not tied to the embeddings; "
                "release some, or use full"
            )

    def begin(self, setting: Setting) -> Session:
        """Turn dropout off, and return the session that mixes."""
        return _MixoutSession(self, setting)


def _layers(setting: Setting) -> dict[str, nn.Module]:
    """Find the layers whose weights are mixed, by the names of their weights."""
    from transformers.pytorch_utils import Conv1D

    modules = list(setting.model.modules())
    places = Counter(id(parameter) for module in modules for parameter in module._parameters.values())
    trained = {id(parameter): name for name, parameter in parameters_of(setting.parts).items()}
    return {
        trained[id(module.weight)]: module
        for module in modules
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) in trained and places[id(module.weight)] == 1
    }


@final
class _MixoutSession(Session):
    """Puts mixed weights into a layer before its forward pass, and takes them out behind it."""

    def __init__(self, method: Mixout, setting: Setting) -> None:
        self._p, self._draws, self._changes = method.p, ForwardDraws(method.name), Changes()
        self._changes.no_dropout(setting.model)
        self._layers = _layers(setting) if method.p > 0 else {}
        self._start: dict[str, Tensor] = {}
        self._taken: dict[str, Tensor] = {}  # out of layers that run at this moment
        for name, layer in self._layers.items():
            self._changes.hook(layer.register_forward_pre_hook(partial(self._mix, name)))
            self._changes.hook(layer.register_forward_hook(partial(self._restore, name), always_call=True))

    def start(self) -> None:
        self._start = {name: weight.detach().clone() for name, weight in self._weights().items()}

    def before_forward(self, moment: Moment) -> None:
        self._draws.begin(moment)

    def close(self) -> None:
        self._changes.undo()
        for name in list(self._taken):  # by what no hook is told of, such as an interrupt from the keyboard
            self._restore(name, self._layers[name])

    def state_dict(self) -> dict[str, Any]:
        return {"start": self._start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._start = all_placed(Mixout.name, state["start"], self._weights())

    def _weights(self) -> dict[str, Tensor]:
        return {name: _weight(layer) for name, layer in self._layers.items()}

    def _mix(self, name: str, layer: nn.Module, _: object) -> None:
        if layer.training and name in self._start:
            self._taken[name] = _weight(layer)
            put(layer, "weight", self._mixed(self._taken[name], self._start[name], _input_dim(layer)))

    def _restore(self, name: str, layer: nn.Module, *_: object) -> None:
        if name in self._taken:
            put(layer, "weight", self._taken.pop(name))

    def _mixed(self, weight: Tensor, start: Tensor, dim: int) -> Tensor:
        shape = [weight.shape[dim] if one == dim else 1 for one in range(weight.dim())]
        kept = torch.empty(shape, dtype=weight.dtype, device=weight.device)
        kept.bernoulli_(1 - self._p, generator=self._draws.on(weight.device))
        return torch.addcmul(start, weight - start, kept / (1 - self._p))


def _weight(layer: nn.Module) -> Tensor:
    return cast(Tensor, layer.weight)


def _input_dim(layer: nn.Module) -> int:
    """Return the dimension of the weight along which input features lie."""
    return 1 if isinstance(layer, nn.Linear) else 0  # [out, in], and a Conv1D's is [in, out]
