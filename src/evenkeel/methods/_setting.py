"""What a method is given: the model before training, each batch, and each step of the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from evenkeel.errors import MethodError
from evenkeel.methods._draws import Moment, private_generator
from evenkeel.partition import Components

__all__ = ["Batch", "Problem", "Setting", "Step"]

Problem = Literal["classification", "multi-label", "regression", "causal-lm", "unknown"]


def _outside_of_training() -> Iterable[Tensor]:
    raise MethodError("the losses of the training data are known in a training only; train with MethodTrainer")


@final
@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is to be fine-tuned.

    Attributes:
        model: the model, without wrappers. Where a plan is checked it has no values (``meta`` device).
        parts: its components that are trained, per tensor.
        problem: what its head is for.
        seed: the training's seed.
        losses: goes once through the training data and yields the loss of each batch, with its graph, the model being
            in evaluation mode; draws nothing from torch's global generators.
    """

    model: nn.Module
    parts: Components
    problem: Problem = "unknown"
    seed: int = 0
    losses: Callable[[], Iterable[Tensor]] = _outside_of_training

    def generator(self, name: str, *what: str | int) -> torch.Generator:
        """Make a generator on the CPU for what the method ``name`` draws before training; alike on every rank."""
        return private_generator(self.seed, name, *what)


@final
@dataclass(frozen=True, kw_only=True)
class Batch:
    """A micro-batch whose loss was computed, before backward.

    Attributes:
        inputs: what the model was given, with ``labels``.
        outputs: what it returned.
        loss: the loss of the task, 0-dimensional.
        problem: what the model's head is for.
        moment: where the training is.
        compute: runs the model on the same inputs again, as the first time, and returns loss and outputs.
        items: what the loss was divided by, where that is not the number of items in this micro-batch.
    """

    inputs: Mapping[str, Any]
    outputs: Any
    loss: Tensor
    problem: Problem
    moment: Moment
    compute: Callable[[], tuple[Tensor, Any]]
    items: Tensor | float | None = None

    def again(self) -> tuple[Tensor, Any]:
        """Run the model on the same inputs again, with other dropout and whatever hooks it has by now.

        Returns:
            The loss, and the outputs.
        """
        return self.compute()

    def logits(self, outputs: Any = None) -> Tensor:
        """Return the logits of all items that count, in float32 at least.

        Args:
            outputs: of a run on these inputs; None for the first.

        Returns:
            Shape ``[N, classes]``: an item is an example, or for a causal language model a token that has a label.
        """
        given = self.outputs if outputs is None else outputs
        found: Tensor = given["logits"] if isinstance(given, Mapping) else given[1]  # what a loss stands before
        found = found if found.dtype == torch.float64 else found.float()
        return self.of_labels(found) if self.problem == "causal-lm" else found

    def of_labels(self, values: Tensor) -> Tensor:
        """Pick, of what a causal language model has for each token, that of the tokens that have a label.

        Args:
            values: shape ``[rows, tokens, ...]``.

        Returns:
            Shape ``[N, ...]``: a label belongs to the token before it, which predicts it.
        """
        return values[:, :-1][self.inputs["labels"][:, 1:] != _IGNORED]

    def mean(self, values: Tensor) -> Tensor:
        """Average over items as the task's loss does, so that accumulated micro-batches add up to the large batch.

        Args:
            values: shape ``[N]``, one for each item.

        Returns:
            0-dimensional.
        """
        return values.mean() if self.items is None else values.sum() / self.items


_IGNORED = -100  # the label of what has none, in transformers and torch


@final
@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of the optimizer, when gradients are complete, reduced, unscaled and, but for a second pass, clipped.

    Attributes:
        moment: where the training is.
        total: steps of the whole training.
        parts: the components that are trained now, per tensor.
        optimizer: what makes the step.
    """

    moment: Moment
    total: int
    parts: Components
    optimizer: Optimizer

    def by_rate(self) -> Iterator[tuple[float, list[Tensor]]]:
        """Yield each learning rate and the trained parameters that have it."""
        trained = {id(parameter) for part in self.parts for parameter in part.parameters}
        for group in self.optimizer.param_groups:
            chosen = [parameter for parameter in group["params"] if id(parameter) in trained]
            if chosen:
                yield float(group["lr"]), chosen
