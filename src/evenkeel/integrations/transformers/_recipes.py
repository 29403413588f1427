"""What methods lay down of a training's settings, in the words of TrainingArguments."""

from __future__ import annotations

import copy

from transformers import SchedulerType, TrainingArguments

from evenkeel.methods import Recipe

__all__ = ["laid_down"]

_FIELDS = {
    "epochs": "num_train_epochs",
    "learning_rate": "learning_rate",
    "warmup": "warmup_steps",  # below 1 it is a share
    "weight_decay": "weight_decay",
    "eps": "adam_epsilon",
}
_SCHEDULES = {"constant": "constant_with_warmup"}  # the plain one has none


def laid_down(args: TrainingArguments | None, recipe: Recipe) -> TrainingArguments:
    """Return a copy of ``args`` with what ``recipe`` lays down, and without the Trainer's own clipping.

    Args:
        args: the user's arguments; None for the defaults.
        recipe: what the methods lay down.

    Returns:
        The arguments to train with.
    """
    changed = copy.copy(args) if args is not None else TrainingArguments()
    changed.max_grad_norm = 0.0
    for field, name in _FIELDS.items():
        value = getattr(recipe, field)
        if value is not None:
            setattr(changed, name, value)
    if recipe.schedule is not None:
        changed.lr_scheduler_type = SchedulerType(_SCHEDULES.get(recipe.schedule, recipe.schedule))
    return changed
