"""The p value of a permutation test, whatever is permuted."""

from __future__ import annotations

from collections.abc import Callable

_NUMBERS_AT_ONCE = 2**22  # 32 MiB: many examples or classes must not cost gigabytes


def permutation_p(as_good: Callable[[int], int], permutations: int, *, numbers: int) -> float:
    r"""Return the share of draws that are at least as good as what was seen, which counts as one of them.

    .. math::

        p = \frac{1 + \#\{b : S_b \ge S\}}{1 + B}

    Args:
        as_good: makes so many draws, and counts those that are as good.
        permutations: B, how many draws are made in all, some of them at a time.
        numbers: how many numbers a draw takes.

    Returns:
        The p value, in (0, 1].

    Source: Phipson & Smyth 2010, arXiv 1603.05766.

    Example:
        >>> permutation_p(lambda count: count // 4, 7, numbers=1)
        0.25
    """
    at_once = max(1, _NUMBERS_AT_ONCE // numbers)
    counts = (as_good(min(at_once, permutations - start)) for start in range(0, permutations, at_once))
    return (1 + sum(counts)) / (1 + permutations)
