"""What the options of methods are checked by; they come from the text of a plan as often as from Python."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from numbers import Integral, Real
from typing import TypeGuard

from evenkeel.errors import MethodError, unknown_name

__all__ = ["check_choice", "check_flag", "check_number"]


def check_number(
    method: str,
    option: str,
    value: object,
    *,
    advice: str,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    whole: bool = False,
    infinite: bool = False,
    optional: bool = False,
) -> None:
    """Refuse what is no number within bounds: NaN, booleans, text and lists are none.

    Args:
        method: the method's name.
        option: the option's name.
        value: what was given.
        advice: what to do, or which values are usual.
        least: the least number that is allowed.
        above: what it must be greater than.
        most: the greatest number that is allowed.
        below: what it must be less than.
        whole: whether it must be a whole number.
        infinite: whether it may be infinite.
        optional: whether it may be None.

    Raises:
        MethodError: if it is not as wanted.

    Example:
        >>> check_number("warmup", "share", 0.1, least=0, below=1, advice="0.1 is usual")
        >>> check_number("warmup", "share", 2, least=0, below=1, advice="0.1 is usual")
        Traceback (most recent call last):
        evenkeel.errors.MethodError: warmup: share must be a number from 0 to below 1, but got 2; 0.1 is usual
    """
    if optional and value is None:
        return
    wanted = _wanted(least, above, most, below, whole=whole, infinite=infinite, optional=optional)
    if not _is_number(value, whole=whole, infinite=infinite) or not _within(float(value), least, above, most, below):
        raise MethodError(f"{method}: {option} must be {wanted}, but got {_shown(value, whole=whole)}; {advice}")


def check_flag(method: str, option: str, value: object, *, advice: str) -> None:
    """Refuse what is neither True nor False.

    Args:
        method: the method's name.
        option: the option's name.
        value: what was given.
        advice: what the two stand for.

    Raises:
        MethodError: if it is something else.
    """
    if not isinstance(value, bool):
        raise MethodError(f"{method}: {option} must be true or false, but got {value!r}; {advice}")


def check_choice(method: str, option: str, value: object, known: Iterable[str]) -> None:
    """Refuse what is none of a few words.

    Args:
        method: the method's name.
        option: the option's name.
        value: what was given.
        known: the words.

    Raises:
        MethodError: if it is none of them.
    """
    words = tuple(known)
    if not isinstance(value, str) or value not in words:
        raise MethodError(unknown_name(f"{option} of {method}", str(value), words))


_MOST = 2**53  # up to which floats tell all whole numbers apart


def _is_number(value: object, *, whole: bool, infinite: bool) -> TypeGuard[float]:
    """Say whether a value is a number that a float can hold, and torch where it counts something; NaN is none."""
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
        return False
    if isinstance(value, Integral) and whole and abs(int(value)) > _MOST:
        return False
    try:
        size = abs(float(value))
    except OverflowError:
        return False
    return math.isfinite(size) or (infinite and math.isinf(size))


def _shown(value: object, *, whole: bool) -> str:
    """Write a value, and why one that looks well is none; not a number of so many digits that Python refuses to."""
    size = abs(value) if isinstance(value, int) else 0
    if size > sys.float_info.max:
        return "one of more than 300 digits"
    return f"{value!r}, which is beyond 2**53" if whole and size > _MOST else repr(value)


def _within(number: float, least: float | None, above: float | None, most: float | None, below: float | None) -> bool:
    return (
        (least is None or number >= least)
        and (above is None or number > above)
        and (most is None or number <= most)
        and (below is None or number < below)
    )


def _wanted(
    least: float | None,
    above: float | None,
    most: float | None,
    below: float | None,
    *,
    whole: bool,
    infinite: bool,
    optional: bool,
) -> str:
    """Say in words what is wanted."""
    unbounded = most is None and below is None and not infinite
    words = ["a whole number" if whole else "a finite number" if unbounded else "a number"]
    if least is not None or above is not None:
        words.append(f"from {least:g}" if least is not None else f"above {above:g}")
    if most is not None or below is not None:
        words.append(f"to {most:g}" if most is not None else f"to below {below:g}")
    words.extend(["or inf"] * infinite)
    words.extend(["or none"] * optional)
    return " ".join(words)
