"""A Trainer that runs any mix of methods."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast, final

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import SchedulerType, Trainer, TrainerControl, TrainerState, TrainingArguments, get_scheduler

from evenkeel.clipping import ClipResult
from evenkeel.clipping.thresholds import Threshold
from evenkeel.errors import MethodError
from evenkeel.integrations.transformers._component_clip import ComponentClip
from evenkeel.integrations.transformers._each_step import EachStep
from evenkeel.integrations.transformers._optimizers import (
    OptimizerKind,
    check_choice,
    clipped_adamw,
    stepping_in_backward,
)
from evenkeel.integrations.transformers._phases import Phases
from evenkeel.integrations.transformers._recorder import Recorder
from evenkeel.methods import Method, Mix, PhaseSchedule, parse_method
from evenkeel.optim import ClippedAdamW, InBackward
from evenkeel.partition import Components, components

__all__ = ["MethodTrainer"]


@final
class _MethodClip(EachStep):
    """Clips as a mix of methods says."""

    def __init__(self, mix: Mix) -> None:
        super().__init__()
        self._mix = mix
        self._learning: Threshold | None = None
        self.last: ClipResult | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin with a threshold that has learnt nothing; the method's own is a configuration."""
        super().on_train_begin(args, state, control, **kwargs)
        given = self._mix.clipping(components(kwargs["model"])).max_norm
        self._learning = copy.deepcopy(given) if isinstance(given, Threshold) else None
        if state.global_step and self._learning is not None and self._learning.state_dict():
            raise MethodError(
                f"{given!r} learns, and what it had learnt is not in the checkpoint of this MethodTrainer; train with "
                "optimizer='clipped-adamw', whose state has it, or with the callback ComponentClip"
            )

    def _act(self, parts: Components, state: TrainerState) -> None:
        clipping = self._mix.clipping(parts)
        if self._learning is not None:
            clipping = replace(clipping, max_norm=self._learning)
        self.last = clipping.clip()


class MethodTrainer(Trainer):
    """A Trainer that fine-tunes by any mix of methods.

    It clips as the methods say (``max_grad_norm`` does not count), and trains their phases one after the other: each
    with an empty optimizer and the whole learning-rate schedule. ``num_train_epochs`` is the length of a phase that
    names none of its own; ``max_steps``, where set, is the length of the whole training, shared among the phases in
    proportion.

    Attributes:
        mix: the methods.

    Example:
        >>> # MethodTrainer(model, args, train_dataset=data, methods=["component-clip", "gradual-unfreezing"]).train()
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        *,
        methods: Sequence[str | Method],
        optimizer: OptimizerKind | None = None,
        in_backward: bool = False,
        **kwargs: Any,
    ) -> None:
        """Set up the training.

        Args:
            model: the model to fine-tune.
            args: the training arguments; they are copied, not changed.
            methods: names with options, or methods; see ``evenkeel.methods``.
            optimizer: ``"clipped-adamw"`` clips inside of AdamW's update, see :class:`evenkeel.optim.ClippedAdamW`:
                the same weights, one pass over the gradients less.
            in_backward: clip, step and free every component in backward, see
                :func:`evenkeel.optim.step_in_backward`: the same weights, and gradients are never there all at once.
            **kwargs: everything else that a Trainer takes.

        Raises:
            MethodError: if a method is unknown, the mix cannot be, or the model lacks what a method needs.
        """
        if isinstance(methods, str):
            raise MethodError(f"methods must be a list, but got the text '{methods}'; write methods=['{methods}']")
        self.mix = Mix(tuple(parse_method(method) if isinstance(method, str) else method for method in methods))
        if any(isinstance(callback, ComponentClip) for callback in kwargs.get("callbacks") or ()):
            raise MethodError(
                f"MethodTrainer clips as {self.mix.name} says, and was given the callback ComponentClip, which would "
                f"clip "
                "again; keep one of them"
            )
        args = copy.copy(args) if args is not None else TrainingArguments()
        args.max_grad_norm = 0.0
        check_choice(optimizer, in_backward, args, kwargs.get("optimizers"))
        if in_backward and any(isinstance(callback, Recorder) for callback in kwargs.get("callbacks") or ()):
            raise MethodError(
                "Recorder looks at gradients before the optimizer steps, and in_backward=True leaves none by then; "
                "drop one of them (the norms of the latest step are in MethodTrainer.last_clip)"
            )
        self._kind, self._wants_backward = optimizer, in_backward
        self._clipper: ClippedAdamW | InBackward | None = None
        super().__init__(model, args, **kwargs)
        if self.model is None:
            raise MethodError("MethodTrainer was given no model; pass model, or model_init")
        parts = components(self.model)
        self.mix.check(parts)
        self._schedule = PhaseSchedule(self.mix.phases(parts), epochs=args.num_train_epochs)
        args.num_train_epochs = self._schedule.total_epochs
        self._clip = _MethodClip(self.mix)
        self._phases = Phases(self._schedule)
        self.add_callback(self._phases)
        if self._kind is None and not self._wants_backward:
            self.add_callback(self._clip)

    @property
    def last_clip(self) -> ClipResult | None:
        """What the latest step clipped; None before the first."""
        return self._clip.last if self._clipper is None else self._clipper.last

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as ``Trainer.train`` does; afterwards everything that could be trained before can be trained again."""
        try:
            if isinstance(self._clipper, InBackward) and self.model_init is None:  # of a training before
                self._clipper.zero_grad()  # whatever ended it
                self._clipper.attach()
            return super().train(*args, **kwargs)
        finally:
            self._phases.release()
            if isinstance(self._clipper, InBackward):
                self._clipper.remove()

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make the optimizer of ``TrainingArguments``, and let it clip if it is to."""
        if self._clipper is not None and self.optimizer is not None:  # which model_init has the Trainer forget
            return self.optimizer
        plain = super().create_optimizer(model)
        if self._kind is not None or self._wants_backward:
            clipping = self.mix.clipping(components(cast(nn.Module, self.model if model is None else model)))
            if self._wants_backward:
                self._clipper = stepping_in_backward(plain, clipping, self.args)
            else:
                self._clipper = clipped_adamw(plain, clipping)
            self.optimizer = self._clipper
        return cast(torch.optim.Optimizer, self.optimizer)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run a micro-step as ``Trainer.training_step`` does; where steps happen in backward, the last one steps."""
        last = self.accelerator.sync_gradients or not isinstance(self._clipper, InBackward)
        with contextlib.nullcontext() if last else cast(InBackward, self._clipper).accumulate():
            return super().training_step(*args, **kwargs)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Make the learning-rate schedule of ``TrainingArguments``, whole in every phase."""
        self._schedule.set_steps(num_training_steps)
        given = self.lr_scheduler is not None  # by the user, who then knows best
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if len(self._schedule) > 1 and not given:
            self.lr_scheduler = scheduler = self._phased_scheduler(scheduler)
        return scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as ``Trainer.log`` does, with the true norm of the whole gradient before clipping."""
        if "loss" in logs and self.last_clip is not None:
            logs["grad_norm"] = self.last_clip.total_norm.item()
        super().log(logs, start_time)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> None:
        """Skip the norm that the Trainer takes by clipping at infinity: two passes over all gradients for a log entry.

        Where a version of transformers has no such method, nothing is skipped and nothing else changes.
        """

    def _phased_scheduler(self, plain: torch.optim.lr_scheduler.LRScheduler) -> LambdaLR:
        if not isinstance(plain, LambdaLR):
            kind = SchedulerType(self.args.lr_scheduler_type).value
            raise MethodError(
                f"{self.mix.name} trains in phases, and the schedule '{kind}' cannot start anew "
                "in each; use 'linear', 'cosine' or 'constant'"
            )
        factors = []
        for steps in self._schedule.phase_steps():
            one = get_scheduler(
                self.args.lr_scheduler_type,
                # The same rate as the real one: schedules with a lowest rate take its share of it.
                optimizer=torch.optim.SGD([torch.zeros(1)], lr=plain.optimizer.defaults["lr"]),
                num_warmup_steps=self.args.get_warmup_steps(steps),
                num_training_steps=steps,
                scheduler_specific_kwargs=cast("dict[str, Any] | None", self.args.lr_scheduler_kwargs),
            )
            factors.append(cast(LambdaLR, one).lr_lambdas[0])  # of the same kind as the plain one

        def factor(step: int) -> float:
            phase, start = self._schedule.at(step)
            return float(factors[phase](step - start))

        return LambdaLR(plain.optimizer, factor)
