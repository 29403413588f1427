"""A plan without places: what a store keeps of it names files and folders, and not where they are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evenkeel.study._plan import Plan, TaskPlan

__all__ = ["without_places"]


def without_places(plan: Plan) -> Plan:
    """Return a plan whose files and folders are named by their last part alone.

    What is in them is known by fingerprint, and where they are is nobody else's business: a path tells a user's name.

    Args:
        plan: the plan.

    Returns:
        A plan to keep and to compare, not to run. Of two folders of models with one name, each has a mark of its place
        before it.
    """
    names = _names(plan.models)
    return plan.model_copy(
        update={
            "tasks": tuple(_task(task) for task in plan.tasks),
            "models": tuple(names[model] for model in plan.models),
            "include": tuple(_named(rule, names) for rule in plan.include),
            "exclude": tuple(_named(rule, names) for rule in plan.exclude),
        }
    )


def _task(task: TaskPlan) -> TaskPlan:
    files = {key: value for key, value in task if isinstance(value, Path)}
    return task.model_copy(update={key: Path(_last(value)) for key, value in files.items()})


def _names(models: Sequence[str]) -> dict[str, str]:
    plain = {model: _last(model) if _is_folder(model) else model for model in models}
    names = list(plain.values())
    return {
        model: name if names.count(name) == 1 or name == model else f"{_mark(model)}/{name}"
        for model, name in plain.items()
    }


def _named(value: Any, names: dict[str, str]) -> Any:
    """Replace models in a rule, which may hold lists."""
    if isinstance(value, dict):
        return {key: _named(item, names) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_named(item, names) for item in value)
    return names.get(value, value) if isinstance(value, str) else value


def _is_folder(model: str) -> bool:
    """Whether a model's name is a path: as the search for models has it."""
    return model.startswith((".", "/", "~")) or model.count("/") > 1 or Path(model).is_dir()


def _last(path: str | Path) -> str:
    return os.path.basename(os.path.abspath(os.path.expanduser(path)))


def _mark(path: str) -> str:
    place = os.path.dirname(os.path.abspath(os.path.expanduser(path)))
    return hashlib.sha256(place.encode()).hexdigest()[:8]
