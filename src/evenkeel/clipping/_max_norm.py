"""Thresholds as people write them: one number, numbers by role and path, or a threshold object."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Hashable, Mapping
from numbers import Real
from typing import Any, cast

import torch

from evenkeel.clipping.thresholds import Fixed, Threshold
from evenkeel.errors import ThresholdError
from evenkeel.partition import Components, matches

__all__ = ["MaxNorm", "applicable", "as_threshold", "check_max_norm", "resolve"]

_REMEMBERED = 8

Numbers = float | Mapping[str, float]
MaxNorm = Numbers | Threshold


def check_max_norm(max_norm: MaxNorm) -> None:
    """Refuse what can be no threshold, before there are components to try it on.

    Args:
        max_norm: one number, or numbers by role or pattern; ``inf`` clips nothing; or a threshold object.

    Raises:
        ThresholdError: if a number is not positive or NaN, a mapping is empty, or one of its keys is no text.
    """
    if isinstance(max_norm, Threshold):
        return
    numbers = dict(max_norm) if isinstance(max_norm, Mapping) else {"*": max_norm}
    if not numbers:
        raise ThresholdError("max_norm is an empty mapping; name at least one role or pattern, '*' for all components")
    for pattern, number in numbers.items():
        if not isinstance(pattern, str):
            raise ThresholdError(
                f"max_norm names {pattern!r}, which is no text; name a role ('query') or a pattern on paths "
                "('layer.3.*')"
            )
        if isinstance(number, bool) or not isinstance(number, Real) or not number > 0:  # refuses NaN too
            raise ThresholdError(
                f"max_norm {number!r} (for '{pattern}') is no positive number; to clip nothing, pass float('inf')"
            )
        if sys.float_info.max < number < math.inf:  # a whole number can be
            raise ThresholdError(f"max_norm (for '{pattern}') is too large; to clip nothing, pass float('inf')")


def resolve(max_norm: Numbers, parts: Components) -> tuple[float, ...]:
    """Give every component its threshold; the first role or pattern that fits holds.

    Args:
        max_norm: one number for all, or a mapping of roles or shell patterns on ``Component.path`` to numbers.
        parts: the components, ``C`` of them.

    Returns:
        ``C`` thresholds, in units of the gradient's norm.

    Raises:
        ThresholdError: if a number is no threshold, a pattern fits no component, or a component no pattern.

    Example:
        >>> import torch
        >>> from evenkeel.partition import components
        >>> resolve({"weight": 0.1, "*": 0.5}, components(torch.nn.Linear(2, 1)))
        (0.1, 0.5)
    """
    check_max_norm(max_norm)
    if not isinstance(max_norm, Mapping):
        return (float(max_norm),) * len(parts)
    for pattern in max_norm:
        if pattern != "*" and not parts.select(pattern):
            raise ThresholdError(
                f"max_norm names '{pattern}', which is the role or path of no component here; the paths begin with "
                f"{', '.join(part.path for part in parts[:3])}"
            )
    found = [next((max_norm[pattern] for pattern in max_norm if matches(part, pattern)), None) for part in parts]
    missing = [part.path for part, number in zip(parts, found, strict=True) if number is None]
    if missing:
        raise ThresholdError(
            f"max_norm says nothing of {len(missing)} components, '{missing[0]}' among them; add '*' for the rest, "
            "with float('inf') to leave them alone"
        )
    return tuple(float(number) for number in found if number is not None)


def as_threshold(max_norm: MaxNorm, parts: Components) -> Threshold:
    """Return the threshold object that ``max_norm`` stands for, ready for ``parts``.

    Args:
        max_norm: numbers, or a threshold object.
        parts: the components.

    Returns:
        The object itself; for numbers one that is made once and remembered with the components.

    Raises:
        ThresholdError: if ``max_norm`` is no threshold for these components.
    """
    if isinstance(max_norm, Threshold):
        max_norm.bind(parts)
        return max_norm
    if torch.compiler.is_compiling():
        return Fixed(_resolved(max_norm, parts))
    check_max_norm(max_norm)  # first: to a dictionary True is 1.0
    key = tuple(max_norm.items()) if isinstance(max_norm, Mapping) else max_norm
    return cast(Fixed, _remembered(parts, "thresholds", key, lambda: Fixed(resolve(max_norm, parts))))


def _remembered(parts: Components, what: str, key: Hashable, make: Callable[[], Any]) -> Any:
    """Return what was made for one of the last keys, or make it: a number that moves leaves nothing behind."""
    known: dict[Hashable, Any] = parts.memory.setdefault(what, {})
    if key not in known:
        if len(known) >= _REMEMBERED:
            known.pop(next(iter(known)))
        known[key] = make()
    return known[key]


def _resolve(max_norm: Numbers, parts: Components) -> tuple[float, ...]:
    return resolve(max_norm, parts)


# Patterns cannot be traced, and need not be: what they come to is a constant of the graph.
_resolved: Callable[[Numbers, Components], tuple[float, ...]] = torch.compiler.assume_constant_result(_resolve)  # type: ignore[no-untyped-call]


def applicable(max_norm: MaxNorm, parts: Components) -> MaxNorm:
    """Leave out the patterns that fit none of ``parts``, which a model with frozen parameters may lack for a while.

    Check the thresholds once against the whole model by :func:`as_threshold`; then this hides no misspelling.

    Args:
        max_norm: one number, numbers by role or pattern, or a threshold object.
        parts: the components that are trained now.

    Returns:
        The same thresholds, as far as they apply.
    """
    if not isinstance(max_norm, Mapping):
        return max_norm

    def fitting() -> dict[str, float]:
        return {pattern: number for pattern, number in max_norm.items() if pattern == "*" or parts.select(pattern)}

    return cast("dict[str, float]", _remembered(parts, "applicable", tuple(max_norm.items()), fitting))
