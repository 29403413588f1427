"""evenkeel in Hugging Face's Trainer: a callback for anybody's, and a Trainer that runs any mix of methods."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    SchedulerType,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    get_scheduler,
)
from transformers.trainer_callback import ExportableState

from evenkeel.clipping import (
    ClipResult,
    ClipStatistics,
    MaxNorm,
    Nonfinite,
    applicable,
    as_threshold,
    check_max_norm,
    check_nonfinite,
    clip_grad_norm_,
)
from evenkeel.clipping.thresholds import Threshold
from evenkeel.errors import GradientError, MethodError, ThresholdError
from evenkeel.integrations._state import pack, unpack
from evenkeel.measure import GradientNorms
from evenkeel.methods import Method, Mix, PhaseSchedule, parse_method
from evenkeel.partition import By, Component, Components, CurrentComponents, Roles, components

__all__ = ["ComponentClip", "MethodTrainer", "Recorder"]


def unscale(optimizer: Any) -> None:
    """Make the gradients what the optimizer will see: divide an fp16 loss scale out, once.

    Args:
        optimizer: what the Trainer hands to its callbacks; Accelerate's wrapper knows the scaler.
    """
    scaler = getattr(optimizer, "scaler", None)
    if scaler is None or not scaler.is_enabled():
        return
    try:
        scaler.unscale_(optimizer.optimizer)
    except RuntimeError as error:
        # Some versions of the Trainer unscale before the callbacks run; doing it twice would be wrong and is refused.
        if "already been called" not in str(error):
            raise


class _EachStep(TrainerCallback, ABC):
    """Acts once per optimizer step, when gradients are complete and unscaled, on what is trained by then."""

    def __init__(self, by: By = "tensor", roles: Roles | None = None) -> None:
        self.by: By = by
        self.roles = roles
        self._current: CurrentComponents | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the model; ``model_init`` makes a new one for every training."""
        self._current = CurrentComponents(kwargs["model"], self.by, roles=self.roles)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Act on what the optimizer is about to see."""
        unscale(kwargs["optimizer"])
        if self._current is None:  # a loop that is no Trainer's may leave out on_train_begin
            self._current = CurrentComponents(kwargs["model"], self.by, roles=self.roles)
        self._act(self._current(), state)

    @abstractmethod
    def _act(self, parts: Components, state: TrainerState) -> None: ...


@final
class ComponentClip(_EachStep, ExportableState):
    """Clip the gradient of every component on its own, in anybody's Trainer.

    It runs once per optimizer step, after accumulation and unscaling and before the optimizer. The components are
    looked up again whenever parameters are frozen or released.

    With ``max_grad_norm=0`` transformers 5.23 still clips all gradients together at infinity, for its log, before any
    callback runs: where one component's gradient is not finite, that makes all of them NaN. No callback can prevent it;
    ``MethodTrainer`` leaves it out.

    What a threshold object has learnt is kept in every checkpoint (``trainer_state.json``) and taken up again by a
    training that is resumed, whatever ``restore_callback_states_from_checkpoint`` says.

    Attributes:
        last: what the latest step clipped; None before the first.

    Example:
        >>> from transformers import TrainingArguments
        >>> arguments = TrainingArguments(max_grad_norm=0)  # no global clipping beside it
        >>> callback = ComponentClip(max_norm=0.05)  # Trainer(args=arguments, callbacks=[callback], ...)
    """

    def __init__(
        self,
        max_norm: MaxNorm = 0.05,
        *,
        by: By = "tensor",
        roles: Roles | None = None,
        also_global: bool = False,
        nonfinite: Nonfinite = "propagate",
        statistics: ClipStatistics | None = None,
    ) -> None:
        """Set up the callback.

        Args:
            max_norm: the norm that each component may have; or norms by role or path; or a threshold object, which
                begins anew with every training that is not resumed.
            by: what counts as one component, see :func:`evenkeel.components`.
            roles: rules for a model that evenkeel does not know, see :func:`evenkeel.components`.
            also_global: allow the Trainer's own global clipping (``max_grad_norm``), which acts first.
            nonfinite: what to do with gradients that are not finite, see :func:`evenkeel.clip_grad_norm_`.
            statistics: where to count how often each component is clipped.

        Raises:
            ThresholdError: if ``max_norm`` is no threshold.
            GradientError: if ``nonfinite`` is unknown.
        """
        super().__init__(by, roles)
        check_max_norm(max_norm)
        check_nonfinite(nonfinite)
        self.max_norm = max_norm
        self._given = copy.deepcopy(max_norm)  # two trainings must not share what a threshold learns
        self.also_global = also_global
        self.nonfinite: Nonfinite = nonfinite
        self.statistics = statistics
        self.last: ClipResult | None = None
        self._lost: list[str] = []

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, in JSON's terms: the configuration, and what the threshold has learnt."""
        given: dict[str, Any] = {
            "max_norm": self.max_norm,
            "by": self.by,
            "also_global": self.also_global,
            "nonfinite": self.nonfinite,
        }
        # A mapping is no simple value: its order counts, and the Trainer's JSON is sorted.
        kept = {name: value for name, value in given.items() if isinstance(value, float | int | str)}
        others = {"roles": self.roles, "statistics": self.statistics}
        lost = [*(given.keys() - kept), *(name for name, value in others.items() if value is not None)]
        learnt = pack(self.max_norm) if isinstance(self.max_norm, Threshold) else None
        return {"args": kept, "attributes": {"_lost": sorted(lost), "_learnt": learnt}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the model; refuse, by a ``GradientError``, the Trainer's global clipping beside this one."""
        if self._lost:
            raise GradientError(
                "restore_callback_states_from_checkpoint=True rebuilt ComponentClip without its "
                f"{', '.join(self._lost)}, which JSON cannot hold; leave it False: ComponentClip takes up by itself "
                "what its threshold had learnt"
            )
        if args.max_grad_norm and not self.also_global:
            raise GradientError(
                f"ComponentClip was given a Trainer that also clips globally (max_grad_norm={args.max_grad_norm}), "
                "which acts first and hides the components' own norms; set TrainingArguments(max_grad_norm=0), or "
                "ComponentClip(also_global=True) if you mean both"
            )
        super().on_train_begin(args, state, control, **kwargs)
        # A name that fits nothing is an error now; later it may be what is frozen.
        self.max_norm = copy.deepcopy(self._given)
        as_threshold(self.max_norm, components(kwargs["model"], self.by, roles=self.roles))
        callbacks = cast("dict[str, Any]", state.stateful_callbacks)  # by now, whatever its annotation says
        saved = callbacks.setdefault(type(self).__name__, {})  # else the Trainer fails at its next save
        if state.global_step:
            self._resume(saved.get("attributes", {}).get("_learnt") if isinstance(saved, dict) else saved)

    def _resume(self, learnt: Any) -> None:
        if isinstance(self.max_norm, Threshold):
            unpack(learnt, self.max_norm)
        elif learnt is not None:
            raise ThresholdError(
                f"the checkpoint was written with the threshold {learnt['threshold']} and this training has "
                f"{self.max_norm!r}; resume with the same threshold, or begin a new training"
            )

    def _act(self, parts: Components, state: TrainerState) -> None:
        self.last = clip_grad_norm_(parts, applicable(self.max_norm, parts), nonfinite=self.nonfinite)
        if self.statistics is not None:
            self.statistics.update(self.last)


@final
class Recorder(_EachStep):
    """Record the gradient norm of every component before clipping; put it before any clipping callback.

    Attributes:
        norms: what was recorded.
    """

    def __init__(self, *, every: int = 10, roles: Roles | None = None) -> None:
        """Record each ``every``-th step; ``roles`` are rules as in :func:`evenkeel.components`."""
        super().__init__(roles=roles)
        self.norms = GradientNorms(every=every)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin anew, on a model that may be another one than in the training before."""
        super().on_train_begin(args, state, control, **kwargs)
        self.norms = GradientNorms(every=self.norms.every)

    def _act(self, parts: Components, state: TrainerState) -> None:
        self.norms.record(state.global_step, parts)


@final
class _MethodClip(_EachStep):
    """Clips as a mix of methods says."""

    def __init__(self, mix: Mix) -> None:
        super().__init__()
        self._mix = mix
        self.last: ClipResult | None = None

    def _act(self, parts: Components, state: TrainerState) -> None:
        self.last = self._mix.clip(parts)


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
        **kwargs: Any,
    ) -> None:
        """Set up the training.

        Args:
            model: the model to fine-tune.
            args: the training arguments; they are copied, not changed.
            methods: names with options, or methods; see ``evenkeel.methods``.
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
        super().__init__(model, args, **kwargs)
        if self.model is None:
            raise MethodError("MethodTrainer was given no model; pass model, or model_init")
        parts = components(self.model)
        self.mix.check(parts)
        self._schedule = PhaseSchedule(self.mix.phases(parts), epochs=args.num_train_epochs)
        args.num_train_epochs = self._schedule.total_epochs
        self._clip = _MethodClip(self.mix)
        self._phases = _Phases(self._schedule)
        self.add_callback(self._phases)
        self.add_callback(self._clip)

    @property
    def last_clip(self) -> ClipResult | None:
        """What the latest step clipped; None before the first."""
        return self._clip.last

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as ``Trainer.train`` does; afterwards everything that could be trained before can be trained again."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self._phases.release()

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


class _Phases(TrainerCallback):
    """Freezes and releases components as the phases say."""

    def __init__(self, schedule: PhaseSchedule) -> None:
        self._schedule = schedule
        self._parts = Components([])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._parts = components(kwargs["model"])  # what the user froze stays frozen
        self._enter(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._schedule.begins(state.global_step) and state.global_step < state.max_steps:
            self._enter(state.global_step)
            kwargs["optimizer"].state.clear()  # each phase is a fine-tuning of its own

    def release(self) -> None:
        self._set(lambda _: True)

    def _enter(self, step: int) -> None:
        self._set(self._schedule.phases[self._schedule.at(step)[0]].trainable)

    def _set(self, trainable: Callable[[Component], bool]) -> None:
        wanted: dict[Tensor, bool] = {}
        for part in self._parts:
            for parameter in part.parameters:  # a tensor is trained if any of its parts is
                wanted[parameter] = trainable(part) or wanted.get(parameter, False)
        for parameter, is_trained in wanted.items():
            parameter.requires_grad_(is_trained)
