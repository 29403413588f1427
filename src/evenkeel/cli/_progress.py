"""The progress of one training, as a bar."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["TrainingProgress"]


class TrainingProgress(TrainerCallback):
    """Shows steps done, the latest loss and the time left."""

    def __init__(self, console: Console) -> None:
        """Draw on ``console`` once training begins."""
        self._progress = Progress(
            TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"), console=console,
        )  # fmt: skip
        self._bar = self._progress.add_task("training", loss="")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show an empty bar."""
        self._progress.update(self._bar, total=state.max_steps)
        self._progress.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move on by a step."""
        self._progress.update(self._bar, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the latest loss."""
        if logs and "loss" in logs:
            self._progress.update(self._bar, loss=f"loss {logs['loss']:.3f}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the finished bar behind."""
        self._progress.stop()
