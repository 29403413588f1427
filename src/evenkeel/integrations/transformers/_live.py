"""The sessions of a mix of methods, lived through by a Trainer."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any, final

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from evenkeel.errors import MethodError
from evenkeel.integrations._unscale import unscale
from evenkeel.integrations.transformers._method_clip import MethodClip
from evenkeel.methods import Mix, Moment, Session, Setting, Step
from evenkeel.partition import CurrentComponents

__all__ = ["LiveSession"]

_FILE = "evenkeel_methods.pt"


@final
class LiveSession(TrainerCallback):
    """Tells a mix's sessions what happens in a training, and keeps their state in its checkpoints.

    Attributes:
        session: what the methods do; does nothing outside of a training.
    """

    def __init__(self, mix: Mix, clip: MethodClip) -> None:
        """Live through trainings of ``mix``; the state of ``clip`` is kept beside the methods' own."""
        self._mix, self._clip = mix, clip
        self._checkpoint: Path | None = None
        self._current: CurrentComponents | None = None
        self.session: Session = Session()

    def begin(self, setting: Setting, checkpoint: str | None) -> None:
        """Begin a training, before its optimizer is made; ``checkpoint`` is the folder that it is resumed from."""
        self.close()
        self._checkpoint = None if checkpoint is None else Path(checkpoint)
        self.session = self._mix.begin(setting)
        self._current = CurrentComponents(setting.model)

    def close(self) -> None:
        """Take back what was done to the model, but for its weights."""
        session, self.session = self.session, Session()
        session.close()

    def moment(self, args: TrainingArguments, state: TrainerState, micro: int = 0) -> Moment:
        """Return where the training is."""
        return Moment(step=state.global_step, micro=micro, seed=args.seed, rank=args.process_index)

    def step(self, args: TrainingArguments, state: TrainerState, optimizer: Any) -> Step:
        """Return the step that comes next, or was just made."""
        if self._current is None:
            raise MethodError(f"{self._mix.name} was not begun; call MethodTrainer.train()")
        return Step(moment=self.moment(args, state), total=state.max_steps, parts=self._current(), optimizer=optimizer)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start, or go on from the checkpoint."""
        if self._checkpoint is None:
            self.session.start()
            return
        kept = self._read(self._checkpoint)
        self.session.load_state_dict(kept["methods"])
        self._clip.load_state_dict(kept["threshold"])

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Comes after clipping."""
        if self._mix.acting:
            unscale(kwargs["optimizer"])
            self.session.before_step(self.step(args, state, kwargs["optimizer"]))

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Comes before the learning rate of the next step is set."""
        skipped = getattr(kwargs["optimizer"], "step_was_skipped", False)  # of an fp16 gradient that overflowed
        if self._mix.acting and not skipped:
            self.session.after_step(self.step(args, state, kwargs["optimizer"]))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the state into the checkpoint that was just saved, whole or not at all."""
        folder = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if not args.should_save or args.save_only_model or not folder.is_dir():  # a search's trials have other folders
            return
        kept = {"methods": self.session.state_dict(), "threshold": self._clip.state_dict()}
        if any(kept.values()):
            beside = folder / f"{_FILE}.new"
            torch.save(kept, beside)
            os.replace(beside, folder / _FILE)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Comes when no exception ended the training."""
        self.session.finish()

    def _read(self, checkpoint: Path) -> dict[str, Any]:
        file = checkpoint / _FILE
        if not file.exists() and not self._mix.acting and not self._clip.state_dict():
            return {"methods": {}, "threshold": {}}
        try:
            kept: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
            return {"methods": kept["methods"], "threshold": kept["threshold"]}
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise MethodError(
                f"{self._mix.name} cannot go on from '{checkpoint}': its {_FILE} is missing or cannot be read "
                f"({error}); resume from another checkpoint, written by a MethodTrainer with the same methods"
            ) from error
