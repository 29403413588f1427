"""Which runs of a grid are done: rules that name them by their fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenkeel.errors import unknown_name

if TYPE_CHECKING:
    from evenkeel.study._spec import PlannedRun

__all__ = ["Rule", "chosen", "refuse_rules", "renamed"]

Rule = Mapping[str, Any]  # field -> a value, or a list of them

_PLAIN = ("task", "model", "method", "seed", "init_seed", "order_seed", "split_seed")


def chosen(run: PlannedRun, include: Sequence[Rule], exclude: Sequence[Rule]) -> bool:
    """Say whether a run is to be done: some rule of ``include`` fits it, where there are any, and none of ``exclude``.

    Args:
        run: the run.
        include: rules.
        exclude: rules.

    Returns:
        Whether it is.
    """
    return (not include or any(_fits(run, rule) for rule in include)) and not any(_fits(run, rule) for rule in exclude)


def refuse_rules(rules: Mapping[str, Sequence[Rule]], runs: Iterable[PlannedRun]) -> None:
    """Refuse rules that name no field, or no run, and rules that leave nothing.

    Args:
        rules: those of ``include`` and of ``exclude``.
        runs: the whole grid.

    Raises:
        ValueError: if there is such a rule.
    """
    grid = list(runs)
    known = [*_PLAIN, *(f"training.{name}" for name in type(grid[0].training).model_fields)]
    known += sorted({f"overrides.{name}" for run in grid for name in run.overrides})
    for name, listed in rules.items():
        for rule in listed:
            for field in rule:
                if field not in known:
                    raise ValueError(unknown_name(f"field of a run in {name}", field, known))
            if not any(_fits(run, rule) for run in grid):
                raise ValueError(f"{name}: no run fits {_shown(rule)}; {_closer(rule, grid)}")
    if not any(chosen(run, rules["include"], rules["exclude"]) for run in grid):
        raise ValueError("include and exclude leave no run; take one of them out")


def renamed(rule: Rule, models: Mapping[str, str]) -> dict[str, Any]:
    """Return a rule that calls models as the runs do.

    Args:
        rule: the rule.
        models: new names by old ones.

    Returns:
        The rule.

    Example:
        >>> renamed({"model": "small", "seed": 1}, {"small": "/models/small"})
        {'model': ['/models/small'], 'seed': 1}
    """
    named = {"model": [models.get(name, name) for name in _listed(rule["model"])]} if "model" in rule else {}
    return {**rule, **named}


def _fits(run: PlannedRun, rule: Rule) -> bool:
    return all(
        any(_same(value, wanted) for value in _values(run, field) for wanted in _listed(rule[field])) for field in rule
    )


def _values(run: PlannedRun, field: str) -> list[Any]:
    """Return what a field may be called: a model goes by its whole name, and by its folder's."""
    section, dot, name = field.partition(".")
    if dot:
        return [getattr(run.training, name)] if section == "training" else [run.overrides.get(name)]
    if field == "task":
        return [run.task.name]
    if field == "model":
        return [run.model, Path(run.model).name]
    return [getattr(run, field)]


def _listed(wanted: Any) -> Sequence[Any]:
    return wanted if isinstance(wanted, (list, tuple)) else (wanted,)


def _same(value: Any, wanted: Any) -> bool:
    if isinstance(value, str) and isinstance(wanted, str):
        return value == wanted or ("*" in wanted and fnmatchcase(value, wanted.replace("[", "[[]")))
    if isinstance(value, (int, float)) and isinstance(wanted, str):  # YAML takes 1e-5 for text
        try:
            return value == float(wanted)
        except ValueError:
            return False
    return bool(value == wanted)


def _closer(rule: Rule, grid: Sequence[PlannedRun]) -> str:
    """Say what there is of the first field that fits no run, or that no run has all of them."""
    for field in rule:
        if not any(_fits(run, {field: rule[field]}) for run in grid):
            there = dict.fromkeys(str(_values(run, field)[-1]) for run in grid)
            known = list(there)[:8]
            return f"of {field} there is {', '.join(known)}{' ...' if len(there) > len(known) else ''}"
    return "each of its fields fits some run, and no run fits them all"


def _shown(rule: Rule) -> str:
    return "{" + ", ".join(f"{field}: {value}" for field, value in rule.items()) + "}"
