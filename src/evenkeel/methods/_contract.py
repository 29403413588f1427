"""What a fine-tuning method is: a frozen configuration and the few hooks that a trainer calls."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from evenkeel.clipping import ClipResult, MaxNorm, applicable, clip_grad_norm_
from evenkeel.partition import Component, Components

__all__ = ["Clipping", "Method", "Owned", "Phase"]

Owned = Literal["clipping", "phases"]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of training in which some of the model is trained.

    Every phase is a fine-tuning of its own: the optimizer's state is empty and the learning-rate schedule starts anew.

    Attributes:
        name: what a log calls it.
        trainable: whether a component is trained in this phase.
        epochs: how long it lasts, in epochs; None takes ``TrainingArguments.num_train_epochs``.
    """

    name: str
    trainable: Callable[[Component], bool]
    epochs: float | None = None


@dataclass(frozen=True, kw_only=True)
class Clipping:
    """What is clipped together, and to which norm: for whoever clips, after backward, in the optimizer or in backward.

    Attributes:
        parts: the components.
        max_norm: the norm that each may have, see :func:`evenkeel.clip_grad_norm_`.
    """

    parts: Components
    max_norm: MaxNorm

    def clip(self) -> ClipResult:
        """Clip the gradients in place; patterns that fit nothing of what is trained now are passed over."""
        return clip_grad_norm_(self.parts, applicable(self.max_norm, self.parts))


class Method(ABC):
    """A way of fine-tuning. A method is a final, frozen, keyword-only dataclass that derives from this.

    Class attributes:
        name: the name by which plans and the command line know it.
        summary: what it does, in one line.
        source: where it is described.
        owns: what it decides; two methods that own the same thing cannot be mixed.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    owns: ClassVar[frozenset[Owned]] = frozenset()

    def check(self, parts: Components) -> None:
        """Refuse a model that lacks what the method needs, before training; the default needs nothing.

        Args:
            parts: the components of the whole model, per tensor.

        Raises:
            EvenkeelError: saying what is missing.
        """
        return

    def phases(self, parts: Components) -> tuple[Phase, ...]:
        """Return the phases of training, called by owners of ``"phases"`` before training.

        Args:
            parts: the components of the whole model, per tensor.

        Returns:
            The phases in order, at least one.

        Raises:
            MethodError: if the model lacks what the method needs.
        """
        raise NotImplementedError(f"{type(self).__name__} does not own the phases of training")

    def clipping(self, parts: Components) -> Clipping:
        """Say what is clipped together and to which norm; asked of owners of ``"clipping"``.

        Args:
            parts: the components that are trained, per tensor.

        Returns:
            Components of the same parameters, and what they may have.
        """
        raise NotImplementedError(f"{type(self).__name__} does not own the clipping of gradients")
