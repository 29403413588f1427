"""What a fine-tuning method is: a frozen configuration, what it decides, and how it takes part in a training."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch.optim import Optimizer

from evenkeel.clipping import ClipResult, MaxNorm, applicable, clip_grad_norm_
from evenkeel.methods._session import Session
from evenkeel.methods._setting import Setting
from evenkeel.optim import MaxUpdate
from evenkeel.partition import Component, Components

__all__ = ["Clipping", "Method", "Owned", "Phase", "Recipe", "Touched"]

Owned = Literal["clipping", "phases", "rates", "update", "second pass"]
Touched = Literal["gradients", "weights", "forward", "result", "step"]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of training in which some of the model is trained.

    Attributes:
        name: what a log calls it.
        trainable: whether a component is trained in this phase.
        epochs: how long it lasts, in epochs; None takes ``TrainingArguments.num_train_epochs``.
        restart: whether it is a fine-tuning of its own, whose optimizer is empty and whose learning-rate schedule
            starts anew; else both go on from the phase before.
    """

    name: str
    trainable: Callable[[Component], bool]
    epochs: float | None = None
    restart: bool = True


@dataclass(frozen=True, kw_only=True)
class Clipping:
    """What is clipped together, and to which norm: for whoever clips, after backward, in the optimizer or in backward.

    Attributes:
        parts: the components.
        max_norm: the norm that each may have, see :func:`evenkeel.clip_grad_norm_`.
        max_update: how far a step may take each, see :class:`evenkeel.optim.UpdateLimit`; None for any distance. A
            method that limits steps owns ``"update"`` too.
    """

    parts: Components
    max_norm: MaxNorm
    max_update: MaxUpdate | None = None

    def clip(self) -> ClipResult:
        """Clip the gradients in place; patterns that fit nothing of what is trained now are passed over."""
        return clip_grad_norm_(self.parts, applicable(self.max_norm, self.parts))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a method lays down of the training's own settings; None leaves a setting as the training has it.

    Attributes:
        epochs: length of the training, or of each phase that names none of its own.
        learning_rate: the peak learning rate.
        warmup: share of the steps in which the rate rises linearly from 0.
        schedule: how the rate goes on from there, in the Trainer's words: ``"linear"``, ``"cosine"``, ``"constant"``.
        weight_decay: AdamW's decay.
        eps: AdamW's epsilon.
        correct_bias: whether Adam's moments are corrected for having begun at 0; they are unless this is False.
    """

    epochs: float | None = None
    learning_rate: float | None = None
    warmup: float | None = None
    schedule: str | None = None
    weight_decay: float | None = None
    eps: float | None = None
    correct_bias: bool | None = None


class Method(ABC):
    """A way of fine-tuning. A method is a final, frozen, keyword-only dataclass that derives from this.

    It says what it is in class attributes, decides what it owns, and returns from :meth:`begin` a
    :class:`~evenkeel.methods.Session` for everything that happens while a training goes on.

    Class attributes:
        name: the name by which plans and the command line know it.
        summary: what it does, in one line.
        source: where it is described.
        owns: what it decides; two methods that own the same thing cannot be mixed.
        otherwise: what it decides where no method of a mix owns it.
        touches: what its session changes, so that ways of training which leave no room for that are refused:
            ``"gradients"`` after they were clipped, ``"weights"`` between backward and the step, ``"forward"`` where
            the model draws or behaves otherwise in its forward passes, ``"result"`` where the training's last weights
            are not its result, ``"step"`` where its optimizer must step all parameters together.
        conflicts: methods that it cannot be mixed with, and why, beyond what both own.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    owns: ClassVar[frozenset[Owned]] = frozenset()
    otherwise: ClassVar[frozenset[Owned]] = frozenset()
    touches: ClassVar[frozenset[Touched]] = frozenset()
    conflicts: ClassVar[Mapping[str, str]] = {}

    def check(self, setting: Setting) -> None:
        """Refuse a model that lacks what the method needs, before training; the default needs nothing.

        Args:
            setting: what is to be fine-tuned; its tensors may have no values.

        Raises:
            EvenkeelError: saying what is missing.
        """
        return

    def recipe(self) -> Recipe:
        """Return what the method lays down of the training's settings; the default nothing."""
        return Recipe()

    def begin(self, setting: Setting) -> Session:
        """Begin a training: change weights or modules as the method wants them, and return what goes on from there.

        It is called before a checkpoint is loaded and before the optimizer is made; the default does nothing.

        Args:
            setting: what is fine-tuned.

        Returns:
            The session; what it changes in modules it takes back in :meth:`Session.close`.
        """
        return Session()

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

    def rates(self, parts: Components) -> Mapping[str, float]:
        """Return what the learning rate is multiplied by; asked of owners of ``"rates"``.

        Args:
            parts: the components of the whole model, per tensor.

        Returns:
            A positive factor for the name of each component.
        """
        raise NotImplementedError(f"{type(self).__name__} does not own learning rates")

    def optimizer(self, plain: Optimizer) -> Optimizer:
        """Return the optimizer to train with; asked of owners of ``"update"``.

        Args:
            plain: the AdamW that would be used, without state.

        Returns:
            An optimizer of the same groups.
        """
        raise NotImplementedError(f"{type(self).__name__} does not own the optimizer's update")
