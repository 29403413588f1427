"""The callbacks beside a callback, and a place before them in the log."""

from __future__ import annotations

import inspect
from typing import Any, final

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler

__all__ = ["LogFirst", "handler_of"]

_FRAMES = 8  # between a callback and the handler that calls it


def handler_of(callback: TrainerCallback) -> CallbackHandler | None:
    """Return the handler that is calling ``callback`` at the moment.

    A Trainer tells its callbacks nothing of each other, and puts its own reporters (TensorBoard, W&B, MLflow) before
    those of the user, who would add to a log entry too late. So this looks at who calls.

    Args:
        callback: the callback that asks.

    Returns:
        The handler; None where something else calls.
    """
    frame = inspect.currentframe()
    for _ in range(_FRAMES):
        frame = None if frame is None else frame.f_back
        if frame is None:
            return None
        caller = frame.f_locals.get("self")
        if isinstance(caller, CallbackHandler) and any(one is callback for one in caller.callbacks):
            return caller
    return None


@final
class LogFirst(TrainerCallback):
    """Lets another callback's ``on_log`` act before all reporters do.

    Attributes:
        behind: the callback that acts.
    """

    def __init__(self, behind: TrainerCallback) -> None:
        """Act for ``behind``."""
        self.behind = behind

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Let it act now."""
        self.behind.on_log(args, state, control, **kwargs)

    @classmethod
    def put_into(cls, handler: CallbackHandler, behind: TrainerCallback) -> None:
        """Put one for ``behind`` before all others, once.

        Args:
            handler: the Trainer's callbacks.
            behind: the callback that is to act first.
        """
        if not any(isinstance(one, cls) and one.behind is behind for one in handler.callbacks):
            handler.callbacks = [cls(behind), *handler.callbacks]  # a new list: somebody is going through the old one
