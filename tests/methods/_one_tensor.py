"""A session that changes gradients, on a model of a few tensors whose gradients a test chooses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from evenkeel import components
from evenkeel.methods import Method, Moment, Session, Setting, Step

__all__ = ["Gradients"]


class Gradients:
    """Parameters by name; a step tells what a method makes of given gradients."""

    def __init__(self, method: Method, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
        self.model = nn.ParameterDict({name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()})
        self.session: Session = method.begin(Setting(model=self.model, parts=components(self.model)))
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0)
        self._parts = components(self.model)

    def after(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what becomes of gradients; tensors that are not named have none."""
        for name, parameter in self.model.named_parameters():
            parameter.grad = gradients[name].clone() if name in gradients else None
        self.session.before_step(Step(moment=Moment(step=0), total=9, parts=self._parts, optimizer=self._optimizer))
        return {name: self.model[name].grad for name in gradients}
