"""How numbers and errors are written in tables and sentences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from evenkeel.study import RunRecord, Status

__all__ = ["all_failed", "last_line", "number", "p_value", "percent", "ranges", "standing"]

_STATUS_WORDS: dict[Status, str] = {
    "queued": "queued",
    "running": "running",
    "error": "ended in an error",
    "lost": "lost with their process",
}


def number(value: float, digits: int = 3) -> str:
    """Write a number with fixed digits; a dash where there is none.

    Args:
        value: the number.
        digits: how many stand behind the point.

    Returns:
        Its text.

    Example:
        >>> number(0.52708), number(float("nan")), number(float("inf"))
        ('0.527', '-', 'infinite')
    """
    if math.isnan(value):
        return "-"
    return f"{value:.{digits}f}" if math.isfinite(value) else "infinite"


def percent(share: float) -> str:
    """Write a share in per cent.

    Args:
        share: the share, 0 to 1.

    Returns:
        Its text.

    Example:
        >>> percent(0.168)
        '17 %'
    """
    return f"{100 * share:.0f} %"


def p_value(p: float) -> str:
    """Write a p value with its sign, as precisely as it matters.

    Args:
        p: the p value.

    Returns:
        Its text, beginning with ``=`` or ``<``.

    Example:
        >>> p_value(0.3034), p_value(0.0123), p_value(1e-5), p_value(1.0)
        ('= .30', '= .012', '< .001', '= 1.00')
    """
    if p < 0.001:
        return "< .001"
    return "= " + f"{p:.{3 if p < 0.0995 else 2}f}".removeprefix("0")


def ranges(values: Iterable[int]) -> str:
    """Write whole numbers, neighbours drawn together.

    Args:
        values: the numbers, in any order.

    Returns:
        Their text; runs of three and more as ``first to last``.

    Example:
        >>> ranges([1, 2, 3, 5, 8, 9])
        '1 to 3, 5, 8, 9'
    """
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    words = [[f"{run[0]} to {run[-1]}"] if len(run) > 2 else [str(value) for value in run] for run in runs]
    return ", ".join(word for group in words for word in group)


def standing(runs: Sequence[RunRecord]) -> str:
    """Say how the runs without a result stand: ``"3 queued, 1 running"``; empty where all have one."""
    counts = Counter(run.status for run in runs)
    return ", ".join(f"{counts[status]} {words}" for status, words in _STATUS_WORDS.items() if counts[status])


def all_failed(methods: Sequence[str]) -> str:
    """Say why a spread is no steadiness.

    Args:
        methods: methods whose runs all failed, at least one.

    Returns:
        Words for it.

    Example:
        >>> all_failed(["full"])
        'spread is no steadiness where all runs failed (full)'
    """
    return f"spread is no steadiness where all runs failed ({', '.join(methods)})"


def last_line(run: RunRecord) -> str:
    """Return the line of a run's error that says what was wrong; empty where it has none."""
    lines = (run.error or "").strip().splitlines()
    return lines[-1].strip() if lines else ""
