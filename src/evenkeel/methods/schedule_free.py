"""Schedule-free AdamW: averages of weights take the place of a learning rate that falls."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast, final

from torch.optim import Optimizer

from evenkeel.errors import MethodError, MissingExtraError
from evenkeel.methods._contract import Clipping, Method, Owned, Recipe, Touched
from evenkeel.methods._draws import Moment
from evenkeel.methods._in_place_of_adamw import groups_of
from evenkeel.methods._options import check_number
from evenkeel.methods._session import Session
from evenkeel.methods._setting import Setting, Step
from evenkeel.partition import Components

__all__ = ["ScheduleFree"]


@final
@dataclass(frozen=True, kw_only=True)
class ScheduleFree(Method):
    r"""Fine-tune with AdamW at a constant rate, its momentum an interpolation between weights and their average.

    Weights :math:`z` and their average :math:`x` begin as the pretrained ones; at step :math:`t`, with the gradient
    :math:`g` at :math:`y`:

    .. math::

        y = (1 - \beta_1) z + \beta_1 x, \qquad v \leftarrow \beta_2 v + (1 - \beta_2) g^2

        z \leftarrow z - \eta_t \left(\frac{g}{\sqrt{v / (1 - \beta_2^t)} + \epsilon} + \lambda y\right), \qquad
        x \leftarrow (1 - c_t) x + c_t z, \qquad c_t = \frac{\eta_t^2}{\sum_{i \le t} \eta_i^2}

    :math:`\eta_t` is the training's rate, after a linear rise over the share ``warmup`` of its steps; the training's
    own schedule and warm-up are turned off. The package's authors find rates 1 to 10 times those of schedules to work.
    Betas, epsilon and weight decay are the training's own.

    **The result is the average.** Gradients are taken at :math:`y`, and between steps the model holds :math:`x`: that
    is what evaluations see, what checkpoints hold, and what training ends with, also where the best of several
    evaluations is kept. Going from the one to the other and back rounds, in the weights' dtype: they must not be
    narrower than float32.

    :math:`z` takes the place of Adam's first moment, so that there is no more to store. The optimizer is that of the
    package ``schedulefree``, by the paper's authors. It counts its steps for all parameters together: stepping in
    backward is refused, and phases that begin anew. Nothing is clipped, unless another method of a mix decides that.

    Source: Defazio et al. 2024, arXiv 2405.15682, the algorithm for AdamW; the package schedulefree 1.4.1 (Apache 2.0),
        which since its version 1.3 decays weights in the warm-up as AdamW does, by :math:`\eta_t`.

    Attributes:
        warmup: share of the steps in which the rate rises linearly, from 0 up to, but not including, 1; the package's
            authors recommend some, and 0.1 is usual in fine-tuning.

    Raises:
        MethodError: if ``warmup`` is no such number; at the start of a training, if weights are narrower than float32.
        MissingExtraError: at the start of a training, if schedulefree is not installed.
    """

    name: ClassVar[str] = "schedule-free"
    summary: ClassVar[str] = "AdamW at a constant rate, whose averaged weights are the model (needs schedulefree)"
    source: ClassVar[str] = "Defazio et al. 2024, arXiv 2405.15682"
    owns: ClassVar[frozenset[Owned]] = frozenset({"update"})
    touches: ClassVar[frozenset[Touched]] = frozenset({"step"})
    otherwise: ClassVar[frozenset[Owned]] = frozenset({"clipping"})
    conflicts: ClassVar[Mapping[str, str]] = {
        "decay-to-pretrained": "it moves weights before the step, of which schedule-free holds two kinds",
        "ema": "each ends the training with an average of its own",
        "gradual-unfreezing": "its phases empty the optimizer's state, in which schedule-free holds the weights",
        "swa": "each ends the training with an average of its own",
    }

    warmup: float = 0.1

    def __post_init__(self) -> None:
        check_number(self.name, "warmup", self.warmup, least=0, below=1, advice="0.1 is usual, 0 is none")

    def check(self, setting: Setting) -> None:
        """Refuse to train without the package."""
        _needs_schedulefree()

    def recipe(self) -> Recipe:
        """Lay down a constant rate; the warm-up is the optimizer's own."""
        return Recipe(warmup=0.0, schedule="constant")

    def begin(self, setting: Setting) -> Session:
        """Refuse weights that are too narrow, and return the session that goes between them and their average."""
        for part in setting.parts:  # not in check: a plan is checked in the dtype of the file, and trained in float32
            for weight in part.parameters:
                if weight.dtype.itemsize < 4:
                    raise MethodError(
                        f"schedule-free goes between weights and their average, and '{part.name}' is {weight.dtype}, "
                        "which is too narrow for that; load the model in float32, and train with bf16=True"
                    )
        return _AveragedSession(self.warmup)

    def clipping(self, parts: Components) -> Clipping:
        """Clip nothing."""
        return Clipping(parts=parts, max_norm=math.inf)

    def optimizer(self, plain: Optimizer) -> Optimizer:
        """Make a schedule-free AdamW of the same groups and settings.

        Args:
            plain: an AdamW without state.

        Returns:
            The optimizer.

        Raises:
            MethodError: if it is another optimizer, has ``amsgrad``, or a first beta of 0.
            MissingExtraError: if schedulefree is not installed.
        """
        groups = groups_of(self.name, plain, ("lr", "betas", "eps", "weight_decay"))
        if any(group["betas"][0] == 0 for group in groups):
            raise MethodError(
                "schedule-free takes gradients between weights and their average, and with a first beta of 0 it could "
                "not tell the average; set TrainingArguments(adam_beta1=0.9)"
            )
        return cast(Optimizer, _needs_schedulefree()(groups))


def _needs_schedulefree() -> Any:
    try:
        from schedulefree import AdamWScheduleFree
    except ImportError as error:
        raise MissingExtraError(
            "schedule-free needs the package schedulefree, which is not installed: pip install 'evenkeel[optimizers]'"
        ) from error
    return AdamWScheduleFree


@final
class _AveragedSession(Session):
    """Leaves the average in the model between steps.

    The optimizer is made after a session has begun, so that it is known from the first step on. Before that, in a
    resumed training, the Trainer itself asks optimizers to train, before each forward pass.
    """

    def __init__(self, warmup: float) -> None:
        self._warmup = warmup
        self._optimizer: Any = None

    def before_forward(self, moment: Moment) -> None:
        if self._optimizer is not None:
            self._optimizer.train()

    def before_step(self, step: Step) -> None:
        self._optimizer = step.optimizer
        self._optimizer.train()
        for group in step.optimizer.param_groups:
            group["warmup_steps"] = math.ceil(self._warmup * step.total)

    def after_step(self, step: Step) -> None:
        self._average()

    def evaluating(self) -> contextlib.AbstractContextManager[None]:
        self._average()  # after a step that a loss scaler skipped
        return contextlib.nullcontext()

    def finish(self) -> None:
        self._average()

    def _average(self) -> None:
        if self._optimizer is not None:
            self._optimizer.eval()
