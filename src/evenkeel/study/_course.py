"""The score of a run while it trains."""

from __future__ import annotations

import math
from typing import final

import pyarrow as pa
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.study._evaluate import asked
from evenkeel.study._prepare import Prepared
from evenkeel.study._scores import judged

__all__ = ["ScoreCourse", "course_table"]

_KEY, _PHASE = "validation_score", "phase"


@final
class ScoreCourse(TrainerCallback):
    """Scores the validation part evenly over training, and at the end of each phase.

    Scores go into the Trainer's log, so that they are in its checkpoints and wherever the log is sent. No random number
    is drawn that training would miss.
    """

    def __init__(self, trainer: MethodTrainer, prepared: Prepared, times: int) -> None:
        """Take what is asked, and how often."""
        self._trainer, self._prepared, self._times = trainer, prepared, times

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Score, where it is time."""
        step, last = state.global_step, state.max_steps
        schedule = self._trainer.schedule
        evenly = step * self._times // last > (step - 1) * self._times // last
        if not evenly and not schedule.begins(step):
            return
        devices = [self._trainer.args.device] if self._trainer.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # a loader draws a seed from the generator that dropout draws from
            found = judged(self._prepared.data, asked(self._trainer, self._prepared, "validation"))
        score = math.nan if found["score"] is None else found["score"]
        due = control.should_log  # the Trainer takes one line in its log for the one that it was about to write
        self._trainer.log({_KEY: score, _PHASE: schedule.at(step - 1)[0]})
        control.should_log = due


def course_table(state: TrainerState) -> pa.Table | None:
    """Return the scores of a training.

    Args:
        state: the Trainer's state.

    Returns:
        ``step``, ``epoch``, ``phase`` (from 0) and ``score`` (null where an output was no number); None if nothing was
        scored.
    """
    rows = [entry for entry in state.log_history if _KEY in entry]
    if not rows:
        return None
    scores = [row[_KEY] if math.isfinite(row[_KEY]) else None for row in rows]
    return pa.table(
        {
            "step": pa.array([row["step"] for row in rows], pa.int32()),
            "epoch": pa.array([row["epoch"] for row in rows], pa.float64()),
            "phase": pa.array([int(row[_PHASE]) for row in rows], pa.int16()),
            "score": pa.array(scores, pa.float64()),
        }
    )
