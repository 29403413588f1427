"""Times and scores as people say them."""

from __future__ import annotations

import math

__all__ = ["duration", "number"]


def duration(seconds: float) -> str:
    """Write a time to two figures at most.

    Args:
        seconds: the time.

    Returns:
        Its text.

    Example:
        >>> [duration(seconds) for seconds in (0.4, 42, 600, 5400, 93_600, 400_000)]
        ['under 1 s', '42 s', '10 min', '1 h 30 min', '26 h', '4.6 days']
    """
    if seconds < 1:
        return "under 1 s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 600:
        return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"
    return f"{minutes / 60:.0f} h" if minutes < 72 * 60 else f"{minutes / 60 / 24:.1f} days"


def number(value: float) -> str:
    """Write a score; a dash where there is none.

    Args:
        value: the score, or NaN.

    Returns:
        Three decimals.

    Example:
        >>> number(0.5), number(float("nan"))
        ('0.500', '-')
    """
    return "-" if math.isnan(value) else f"{value:.3f}"
