"""Changes of a plan from the command line: ``training.epochs=5``."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from evenkeel.errors import PlanError

__all__ = ["amended"]

_FREE_KEYS = ("sweep", "overrides")  # what stands under them is one key, dots and all


def amended(content: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Return a plan's content with some of its values replaced or added.

    Unknown keys are found where the plan is checked, which knows all of them.

    Args:
        content: the plan, as read from YAML.
        changes: ``key=value``, keys with dots, values as YAML; an entry of a list by its number from 0.

    Returns:
        The new content.

    Raises:
        PlanError: if a change cannot be read, or its key leads nowhere.

    Example:
        >>> amended({"seeds": 3}, ["seeds=[1, 2]", "training.epochs=5"])
        {'seeds': [1, 2], 'training': {'epochs': 5}}
    """
    changed = copy.deepcopy(dict(content))
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key.strip():
            raise PlanError(f"--set {change!r} is no change; write --set key=value, such as --set training.epochs=5")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise PlanError(f"--set {change!r}: the value cannot be read as YAML; put text in quotes") from error
        _put(changed, _path(key.strip()), value, change)
    return changed


def _path(key: str) -> list[str]:
    first, dot, rest = key.partition(".")
    return [first, rest] if dot and first in _FREE_KEYS else key.split(".")


def _put(content: Any, path: Sequence[str], value: Any, change: str) -> None:
    place = content
    for key in path[:-1]:
        if isinstance(place, list):
            entry = _number(key, place, change)
            if isinstance(place[entry], str) and path[0] == "tasks":  # the short way to name a task
                place[entry] = {"name": place[entry]}
            place = place[entry]
            continue
        if not isinstance(place, dict):
            raise PlanError(f"--set {change!r}: '{key}' stands below a single value; set what is above it")
        if place.get(key) is None:
            place[key] = {}
        place = place[key]
    if isinstance(place, list):
        place[_number(path[-1], place, change)] = value
    elif isinstance(place, dict):
        place[path[-1]] = value
    else:
        raise PlanError(f"--set {change!r}: '{path[-1]}' stands below a single value; set what is above it")


def _number(key: str, place: Sequence[Any], change: str) -> int:
    if not key.isdecimal() or int(key) >= len(place):
        raise PlanError(
            f"--set {change!r}: '{key}' is no entry of a list of {len(place)}; number them from 0, or set the list"
        )
    return int(key)
