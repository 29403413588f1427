"""What every component does over a training, as a callback."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from evenkeel.clipping import ClipResult
from evenkeel.integrations.transformers._component_clip import ComponentClip
from evenkeel.integrations.transformers._each_step import EachStep
from evenkeel.integrations.transformers._handler import handler_of
from evenkeel.integrations.transformers._method_clip import MethodClip
from evenkeel.integrations.transformers._recorded import Kept, keep, kept_in
from evenkeel.measure import Telemetry
from evenkeel.methods import PhaseSchedule
from evenkeel.optim import InBackward, latest_update
from evenkeel.partition import Components, Roles, components, regroup

__all__ = ["Recorder"]


@dataclass(frozen=True, kw_only=True)
class _Guide:
    """What a MethodTrainer knows, and tells the recorders among its callbacks."""

    handler: CallbackHandler
    schedule: PhaseSchedule
    clip: Callable[[], Any]


@final
class Recorder(EachStep):
    """Record for every component its gradient norm before clipping, coefficients, weight, update and drift.

    It records each ``every``-th step, the first among them, and the last; under a :class:`MethodTrainer` also the first
    and the last of each phase. Frozen components have no rows. Nothing waits for the device between blocks of records.

    Coefficients are those of the ``ComponentClip`` beside it, of an optimizer that clips
    (:class:`evenkeel.optim.ClippedAdamW`, :func:`evenkeel.optim.step_in_backward`), or of the ``MethodTrainer``'s
    methods; without any of these they are unknown. ``max_grad_norm`` acts before any callback: set it to 0, or norms
    are those that it left. Coefficients of updates are those of an optimizer with ``max_update``.

    A ``MethodTrainer`` that is resumed goes on with the table and the references of its checkpoint. In another Trainer
    what is recorded begins with the step that it was resumed at, and drift is unknown.

    Attributes:
        telemetry: what was recorded; ``telemetry.table()`` is the table.

    Example:
        >>> recorder = Recorder(every=10)  # Trainer(callbacks=[recorder, ComponentClip(0.05)], ...)
        >>> recorder.telemetry.table().num_rows
        0
    """

    def __init__(self, *, every: int = 10, roles: Roles | None = None, path: Path | str | None = None) -> None:
        """Set up the callback.

        Args:
            every: record each so many steps.
            roles: rules for a model that evenkeel does not know, see :func:`evenkeel.components`.
            path: a Parquet file to write to; None keeps the table in memory. A resumed training writes beside it.
        """
        super().__init__(roles=roles)
        self.telemetry = Telemetry(every=every)
        self._path = None if path is None else Path(path)
        self._guide: _Guide | None = None
        self._beside: EachStep | None = None
        self._kept: Kept | None = None
        self._in_backward = False

    def follow(
        self,
        handler: CallbackHandler,
        schedule: PhaseSchedule,
        clip: Callable[[], Any],
        *,
        model: nn.Module,
        checkpoint: Path | None,
    ) -> None:
        """Learn what a ``MethodTrainer`` knows, before it loads a checkpoint.

        Args:
            handler: its callbacks.
            schedule: its phases.
            clip: returns what clips: a callback, or an optimizer.
            model: the model, with the weights that training began with.
            checkpoint: the folder that it will go on from.
        """
        self._guide = _Guide(handler=handler, schedule=schedule, clip=clip)
        self._kept = None if checkpoint is None else kept_in(checkpoint, components(model, roles=self.roles))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin anew, on a model that may be another one than in the training before, or go on."""
        super().on_train_begin(args, state, control, **kwargs)
        self._take_place(handler_of(self))
        kept, self._kept = self._kept, None
        path = self._path if state.is_world_process_zero else None
        if not state.global_step:
            self.telemetry = Telemetry(every=self.telemetry.every, path=path)
            return
        if path is not None:
            path = path.with_name(f"{path.stem}-from-{state.global_step}{path.suffix}")
        references = None if kept is None else kept.references(components(kwargs["model"], roles=self.roles))
        self.telemetry = Telemetry(every=self.telemetry.every, path=path, references=references)
        if references is None:
            self.telemetry.forget_references()
        if kept is not None and kept.table is not None:
            self.telemetry.continue_from(kept.table)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the weights now where backward changes them."""
        self._in_backward = isinstance(_bare(kwargs["optimizer"]), InBackward)
        if self._in_backward and self._current is not None:
            self._see(self._current(), state, graded=False)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """See what the step did."""
        if self.telemetry.pending:
            optimizer = kwargs["optimizer"]
            skipped = getattr(optimizer, "step_was_skipped", False)  # of an fp16 gradient that overflowed
            limited = None if skipped else latest_update(_bare(optimizer))
            self.telemetry.after(*self._clipped(optimizer), limited=limited)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Keep in a ``MethodTrainer``'s checkpoint what a resumed training needs."""
        folder = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if self._guide is not None and args.should_save and not args.save_only_model and folder.is_dir():
            keep(self.telemetry, folder, with_table=self._path is None)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the file."""
        self.telemetry.close()

    def _act(self, parts: Components, state: TrainerState) -> None:
        if not self._in_backward:
            self._see(parts, state, graded=True)

    def _see(self, parts: Components, state: TrainerState, *, graded: bool) -> None:
        done, schedule = state.global_step, None if self._guide is None else self._guide.schedule
        self.telemetry.look(parts, 0 if schedule is None else schedule.at(done)[0])
        border = schedule is not None and (schedule.begins(done) or schedule.begins(done + 1))
        if border or self.telemetry.wants(done) or done + 1 == state.max_steps:
            self.telemetry.before(done + 1, graded=graded)

    def _take_place(self, handler: CallbackHandler | None) -> None:
        """Find what clips beside it, and stand before that: norms are to be those before clipping."""
        if self._guide is not None and self._guide.handler is not handler:  # of another Trainer, of a training before
            self._guide = None
        listed: list[TrainerCallback] = [] if handler is None else handler.callbacks
        clips = [one for one in listed if isinstance(one, ComponentClip | MethodClip)]
        self._beside = clips[0] if clips else None
        if handler is not None and clips and listed.index(self) > listed.index(clips[0]):
            others = [one for one in listed if one is not self]
            place = others.index(clips[0])
            handler.callbacks = [*others[:place], self, *others[place:]]  # somebody is going through the old one

    def _clipped(self, wrapped: Any) -> tuple[ClipResult | None, Components | None]:
        """Return what was clipped in this step, and in which components; None where nobody tells."""
        source = _bare(wrapped)
        if self._guide is not None:
            source = self._guide.clip()
        elif self._beside is not None:
            source = self._beside
        if isinstance(source, ComponentClip) and self._current is not None:
            return source.last, regroup(self._current(), source.by)
        if not isinstance(source, MethodClip) and getattr(wrapped, "step_was_skipped", False):
            return None, None  # of an fp16 gradient that overflowed: the optimizer clipped nothing
        last = getattr(source, "last", None)
        return (last, getattr(source, "parts", None)) if isinstance(last, ClipResult) else (None, None)


def _bare(optimizer: Any) -> Any:
    """Take Accelerate's wrapper off."""
    return optimizer if isinstance(optimizer, InBackward) else getattr(optimizer, "optimizer", optimizer)
