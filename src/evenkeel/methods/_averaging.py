"""Averages of weights over the steps of a training, which are its result in place of the last weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from evenkeel.methods._named import placed
from evenkeel.methods._session import Session
from evenkeel.methods._setting import Step

__all__ = ["Average", "AveragingSession"]

# Takes averages, weights and the number of weights averaged so far, and moves the averages.
Average = Callable[[list[Tensor], list[Tensor], int], None]


@final
class AveragingSession(Session):
    """Averages the weights after steps, evaluates with the averages, and leaves them in the model in the end.

    Averaged is whatever the optimizer holds, in float32 at least; buffers are left as they are.
    """

    def __init__(self, name: str, model: nn.Module, average: Average, due: Callable[[Step], bool]) -> None:
        """Set up the session of the method ``name``.

        Args:
            name: the method's name.
            model: the model.
            average: how the averages move.
            due: whether the weights after a step count.
        """
        self._name, self._model = name, model
        self._average, self._due = average, due
        self._count = 0
        self._averages: dict[str, Tensor] = {}

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        if not self._due(step):
            return
        if self._count == 0:
            held = {id(parameter) for group in step.optimizer.param_groups for parameter in group["params"]}
            self._averages = {
                name: _wide(parameter).clone()
                for name, parameter in self._model.named_parameters()
                if id(parameter) in held
            }
        else:
            weights = [_wide(parameter) for parameter in self._weights()]
            self._average(list(self._averages.values()), weights, self._count)
        self._count += 1

    def evaluating(self) -> contextlib.AbstractContextManager[None]:
        return self._exchanged()

    def finish(self) -> None:
        self._put(list(self._averages.values()))

    def state_dict(self) -> dict[str, Any]:
        return {"count": self._count, "averages": self._averages}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._count = state["count"]
        self._averages = placed(self._name, state["averages"], dict(self._model.named_parameters()))

    @contextlib.contextmanager
    def _exchanged(self) -> Iterator[None]:
        own = [weight.detach().clone() for weight in self._weights()]
        self._put(list(self._averages.values()))
        try:
            yield
        finally:
            self._put(own)

    def _weights(self) -> list[Tensor]:
        """Return the parameters that are averaged, in the order of their averages."""
        named = dict(self._model.named_parameters())
        return [named[name] for name in self._averages]

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        for weight, value in zip(self._weights(), values, strict=True):
            weight.copy_(value)


def _wide(parameter: Tensor) -> Tensor:
    """Return the weights in a dtype that small changes are not lost in; themselves where theirs is one."""
    return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))
