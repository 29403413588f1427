"""What to call recipes, where a study holds several."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from evenkeel.study._spec import RunSpec

__all__ = ["recipe_names"]


def recipe_names(specs: Iterable[RunSpec]) -> dict[str, str]:
    """Name the recipe of each run by what differs among them.

    Args:
        specs: the runs.

    Returns:
        By the run's id, the fields that differ and their values: ``learning_rate 1e-05``; empty where there is one
        recipe for all.
    """
    keys = {spec.id: _key(spec) for spec in specs}
    recipes = {key: json.loads(key) for key in dict.fromkeys(keys.values())}
    fields = dict.fromkeys(field for recipe in recipes.values() for field in recipe)
    differing = [field for field in fields if len({_shown(recipe, field) for recipe in recipes.values()}) > 1]
    names = {
        key: ", ".join(f"{field} {_shown(recipe, field)}" for field in differing) for key, recipe in recipes.items()
    }
    return {run: names[key] for run, key in keys.items()}


def _key(spec: RunSpec) -> str:
    return json.dumps({**spec.training.model_dump(mode="json"), **spec.overrides})


def _shown(recipe: Mapping[str, Any], field: str) -> str:
    value = recipe.get(field, "unset")
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
