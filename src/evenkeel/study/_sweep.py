"""Lists of values, expanded into the recipes and methods of a grid."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from evenkeel.errors import unknown_name
from evenkeel.methods import mix_parts

__all__ = ["checked_axis", "expanded_methods", "settings"]

_SECTIONS = ("training", "overrides")


def checked_axis(key: str, methods: Sequence[str], fields: Sequence[str]) -> None:
    """See that a key of a sweep names something that there is.

    Args:
        key: ``training.FIELD``, ``overrides.FIELD`` or ``METHOD.OPTION``.
        methods: the methods of the plan, to whose options a key may point.
        fields: the fields of the recipe.

    Raises:
        ValueError: if it does not.
    """
    section, dot, field = key.partition(".")
    names = {part.partition(":")[0] for method in methods for part in mix_parts(method)}
    if not dot or not field or section not in (*_SECTIONS, *names):
        known = ["training.FIELD", "overrides.FIELD", *(f"{name}.OPTION" for name in names)]
        raise ValueError(unknown_name("key of a sweep", key, known))
    if section == "training" and field not in fields:
        raise ValueError(unknown_name("field of training to sweep", field, fields))


def settings(sweep: Mapping[str, Sequence[Any]], section: str) -> Iterator[dict[str, Any]]:
    """Yield every combination of what is swept in a section; a single empty one where nothing is.

    Args:
        sweep: values by key.
        section: ``training`` or ``overrides``, or the name of a method.

    Yields:
        Values by field; the last field varies fastest.

    Example:
        >>> list(settings({"training.epochs": [1, 2], "full.x": [3]}, "training"))
        [{'epochs': 1}, {'epochs': 2}]
    """
    axes = {key.partition(".")[2]: values for key, values in sweep.items() if key.partition(".")[0] == section}
    for chosen in itertools.product(*axes.values()):
        yield dict(zip(axes, chosen, strict=True))


def expanded_methods(methods: Sequence[str], sweep: Mapping[str, Sequence[Any]]) -> list[str]:
    """Write out the methods with the options that are swept; in a mix, of the part that has them.

    Args:
        methods: as the plan spells them.
        sweep: values by key.

    Returns:
        The methods, each with all of its combinations before the next.

    Example:
        >>> expanded_methods(["full", "component-clip+llrd"], {"component-clip.max_norm": [0.01, 0.05]})
        ['full', 'component-clip:max_norm=0.01+llrd', 'component-clip:max_norm=0.05+llrd']
    """
    found = []
    for method in methods:
        parts = mix_parts(method)
        variants = [[_with(part, chosen) for chosen in settings(sweep, part.partition(":")[0])] for part in parts]
        found += ["+".join(one) for one in itertools.product(*variants)] if _swept(parts, sweep) else [method]
    return found


def _swept(parts: Sequence[str], sweep: Mapping[str, Sequence[Any]]) -> bool:
    names = {key.partition(".")[0] for key in sweep}
    return any(part.partition(":")[0] in names for part in parts)


def _with(part: str, options: Mapping[str, Any]) -> str:
    return ":".join([part, *(f"{name}={_text(value)}" for name, value in options.items())])


def _text(value: Any) -> str:
    """Write a value so that the parser of methods reads it back."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, (int, float)):
        return repr(value)
    return str(yaml.safe_dump(value, default_flow_style=True, width=10**9, sort_keys=False)).strip()
