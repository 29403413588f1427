"""A Trainer that runs any mix of methods."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from evenkeel.clipping import ClipResult
from evenkeel.errors import MethodError
from evenkeel.integrations.transformers._checks import check_callbacks, check_mix, check_model, mix_of
from evenkeel.integrations.transformers._live import LiveSession
from evenkeel.integrations.transformers._method_clip import MethodClip
from evenkeel.integrations.transformers._optimizers import (
    OptimizerKind,
    check_choice,
    clipped_adamw,
    limited,
    set_rates,
    stepping_in_backward,
    without_correction,
)
from evenkeel.integrations.transformers._phases import Phases
from evenkeel.integrations.transformers._problem import problem_of
from evenkeel.integrations.transformers._rates import phased
from evenkeel.integrations.transformers._recipes import laid_down
from evenkeel.integrations.transformers._recorder import Recorder
from evenkeel.methods import Batch, Method, Moment, PhaseSchedule, Setting
from evenkeel.optim import ClippedAdamW, InBackward
from evenkeel.partition import components

__all__ = ["MethodTrainer"]


class MethodTrainer(Trainer):
    """A Trainer that fine-tunes by any mix of methods.

    It clips as the methods say (``max_grad_norm`` does not count), and trains their phases one after the other: each
    with an empty optimizer and the whole learning-rate schedule. ``num_train_epochs`` is the length of a phase that
    names none of its own; ``max_steps``, where set, is the length of the whole training, shared among the phases in
    proportion. What a method lays down of the training's settings takes the place of what ``args`` say.

    Where a model classifies sequences, accumulated micro-batches count alike, as in one large batch: transformers 5.23
    by itself adds their means up, because such a model accepts the number of items but does not divide by it.

    When training ends, also by an exception, the model has the modules and hooks that it had before.

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
            MethodError: if a method is unknown, the mix cannot be, the model lacks what a method needs, or the way of
                training leaves no room for what a method does.
        """
        self.mix = mix_of(methods)
        check_callbacks(self.mix, kwargs.get("callbacks") or ())
        args = laid_down(args, self.mix.recipe())
        given = kwargs.get("optimizers")
        check_choice(optimizer, in_backward, args, given)
        check_mix(self.mix, args, kind=optimizer, in_backward=in_backward, given=given)
        self._kind, self._wants_backward = optimizer, in_backward
        self._clipper: ClippedAdamW | InBackward | None = None
        self._checkpoint: str | None = None
        self._begun = False
        self._moment: Moment | None = None
        self._micro_batches: list[dict[str, Any]] = []
        self._clip = MethodClip(self.mix)
        self._live = LiveSession(self.mix, self._clip)
        super().__init__(model, args, **kwargs)
        if self.model is None:
            raise MethodError("MethodTrainer was given no model; pass model, or model_init")
        check_model(self.mix, self.model)
        setting = self._setting(self.model)
        self.mix.check(setting)
        if setting.problem not in ("causal-lm", "unknown") and self.compute_loss_func is None:
            self.model_accepts_loss_kwargs = False  # it does, and then does not divide by the number of items
        self._schedule = PhaseSchedule(self.mix.phases(setting.parts), epochs=args.num_train_epochs)
        args.num_train_epochs = self._schedule.total_epochs
        self._phases = Phases(self._schedule)
        self.add_callback(self._phases)
        if self._kind is None and not self._wants_backward:
            self.add_callback(self._clip)
        self.add_callback(self._live)

    @property
    def last_clip(self) -> ClipResult | None:
        """What the latest step clipped; None before the first."""
        return self._clip.last if self._clipper is None else self._clipper.last

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as ``Trainer.train`` does; afterwards everything that could be trained before can be trained again."""
        found = resume_from_checkpoint
        if found is True:
            found = get_last_checkpoint(self.args.output_dir)  # type: ignore[no-untyped-call]
        self._checkpoint, self._micro_batches, self._begun = found or None, [], True
        try:
            if self.model_init is None:
                self._begin(self.model)
            if isinstance(self._clipper, InBackward) and self.model_init is None:  # of a training before
                self._clipper.zero_grad()  # whatever ended it
                self._clipper.attach()
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self._begun = False
            self._phases.release()
            self._live.close()
            if isinstance(self._clipper, InBackward):
                self._clipper.remove()

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Make a model as ``Trainer.call_model_init`` does, and begin the methods on it where it is to be trained."""
        made: nn.Module = super().call_model_init(trial)
        if self._begun:
            self._begin(made)
        return made

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make the optimizer of ``TrainingArguments``, as the methods want it, and let it clip if it is to."""
        if self.optimizer is not None:  # the user's, or of a training before, which model_init has the Trainer forget
            kept = isinstance(self._clipper, InBackward) or not self._wants_backward
            return self.optimizer if kept else self._stepping(model)
        plain = super().create_optimizer(model)
        trained = components(cast(nn.Module, self.model if model is None else model))
        rates = self.mix.rates(trained)
        if rates:
            set_rates(plain, trained, rates)
        correct_bias = self.mix.recipe().correct_bias is not False
        if self._kind is not None:
            self.optimizer = self._clipper = clipped_adamw(plain, self.mix.clipping(trained), correct_bias=correct_bias)
        elif self._wants_backward:
            self.optimizer = self.mix.optimizer(plain)
            return self._stepping(model)
        elif not correct_bias:
            self.optimizer = without_correction(plain, trained)
        else:
            self.optimizer = limited(self.mix.optimizer(plain), self.mix.clipping(trained))
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Run a micro-step as ``Trainer.training_step`` does; where gradients are taken twice, the last one does it."""
        last = self.accelerator.sync_gradients
        collecting = not last and isinstance(self._clipper, InBackward)
        with cast(InBackward, self._clipper).accumulate() if collecting else contextlib.nullcontext():
            loss = self._micro_step(model, inputs, num_items_in_batch, micro=len(self._micro_batches))
        self._micro_batches.append(inputs)
        if last:
            batches, self._micro_batches = self._micro_batches, []
            if self.mix.owner("second pass") is not None:
                self._second_pass(model, batches, num_items_in_batch)
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the loss as ``Trainer.compute_loss`` does, and in training add what the methods add."""
        if self._moment is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        kept = dict(inputs)  # the Trainer may take the labels out

        def compute(through: nn.Module) -> tuple[Tensor, Any]:
            found = super(MethodTrainer, self).compute_loss(through, dict(kept), True, num_items_in_batch)
            return cast(tuple[Tensor, Any], found)

        loss, outputs = compute(model)
        batch = Batch(
            inputs=kept,
            outputs=outputs,
            loss=loss,
            problem=problem_of(cast(nn.Module, self.model)),
            moment=self._moment,
            compute=lambda: compute(cast(nn.Module, self.model)),  # DDP's wrapper counts on one pass for each backward
            items=self._divisor(num_items_in_batch),
        )
        term = self._live.session.loss_term(batch)
        loss = loss if term is None else loss + term
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as ``Trainer.evaluation_loop`` does, with the model as the methods want it evaluated."""
        with self._live.session.evaluating():
            return super().evaluation_loop(*args, **kwargs)

    @property
    def schedule(self) -> PhaseSchedule:
        """The phases of training; their steps are known once it has begun."""
        return self._schedule

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Make the learning-rate schedule of ``TrainingArguments``, whole in every phase."""
        self._schedule.set_steps(num_training_steps)
        given = self.lr_scheduler is not None  # by the user, who then knows best
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if len(self._schedule.schedules()) > 1 and not given:
            self.lr_scheduler = scheduler = phased(scheduler, self._schedule, self.args, self.mix.name)
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

    def _setting(self, model: nn.Module) -> Setting:
        return Setting(
            model=model,
            parts=components(model),
            problem=problem_of(model),
            seed=self.args.seed,
            losses=self._losses,
        )

    def _begin(self, model: nn.Module) -> None:
        self._live.begin(self._setting(model), self._checkpoint)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, Recorder):
                callback.follow(
                    self.callback_handler,
                    self._schedule,
                    lambda: self._clip if self._clipper is None else self._clipper,
                    model=model,
                    checkpoint=None if self._checkpoint is None else Path(self._checkpoint),
                )
        own = {id(parameter) for parameter in model.parameters()}
        if self.optimizer is not None and any(
            id(parameter) not in own for group in self.optimizer.param_groups for parameter in group["params"]
        ):
            # Of a training before, whose adapters are gone; what steps in backward had hooks on the rest as well.
            self.optimizer = self.lr_scheduler = self._clipper = None

    def _stepping(self, model: Any) -> torch.optim.Optimizer:
        trained = components(cast(nn.Module, self.model if model is None else model))
        plain = cast(torch.optim.Optimizer, self.optimizer)
        self.optimizer = self._clipper = stepping_in_backward(plain, self.mix.clipping(trained), self.args)
        return self._clipper

    def _micro_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any, *, micro: int) -> Tensor:
        if not self.mix.acting:  # then nobody asks for the outputs either
            return super().training_step(model, inputs, num_items_in_batch)
        self._moment = self._live.moment(self.args, self.state, micro)
        self._live.session.before_forward(self._moment)
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        finally:
            self._moment = None

    def _second_pass(self, model: nn.Module, batches: Sequence[Any], num_items_in_batch: Any) -> None:
        """Take the gradients of all micro-batches again, elsewhere; the last one reduces over ranks."""
        session = self._live.session
        try:
            session.ascend(self._live.step(self.args, self.state, self.optimizer))
            model.zero_grad()
            for micro, inputs in enumerate(batches):
                last = micro == len(batches) - 1
                with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                    self._micro_step(model, inputs, num_items_in_batch, micro=micro)
        finally:
            session.descend()

    def _divisor(self, num_items_in_batch: Any) -> Tensor | float | None:
        """Return what the loss of a micro-batch was divided by, where that is not its own number of items."""
        if num_items_in_batch is None or not (self.model_accepts_loss_kwargs or self.compute_loss_func is not None):
            return None
        ranks = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return cast("Tensor | float", num_items_in_batch / ranks)

    def _losses(self) -> Iterator[Tensor]:
        """Yield the loss of every batch of the training data, and leave torch's generators as they are."""
        model = self.model_wrapped
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            was_training = model.training
            model.eval()
            try:
                for inputs in self.get_train_dataloader():
                    with self.compute_loss_context_manager():
                        yield cast(Tensor, super().compute_loss(model, self._prepare_inputs(inputs)))
            finally:
                model.train(was_training)
