"""Rules for r, the largest step of a component relative to its weights; which of them is good is not known yet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evenkeel.calibrate._arrays import Floats, rounded
from evenkeel.errors import MeasureError

__all__ = ["UpdateRule", "at_rate", "budget_of_run", "first_steps", "median_ratios"]

_FIRST = 5  # steps


@dataclass(frozen=True, kw_only=True)
class UpdateRule:
    """What a rule says r should be.

    Attributes:
        name: the rule.
        max_update: r; None where the rule has nothing to say.
        reason: a sentence.
    """

    name: str
    max_update: float | None
    reason: str


def median_ratios(updates: Floats, weights: Floats, sizes: Floats, floor: float = 1e-3) -> Floats:
    r"""Return the relative step of the middle component at each step.

    .. math:: \operatorname{median}_c \lVert\Delta_c\rVert / (\lVert w_c\rVert + f \sqrt{n_c})

    which is what ``component-update-clip`` holds against r.

    Args:
        updates: norms of changes, shape ``[..., C]``; NaN where there is none.
        weights: norms of weights before, of the same shape.
        sizes: numbers of entries n, shape ``[C]``.
        floor: f.

    Returns:
        The medians over components, shape ``[...]``.

    Example:
        >>> median_ratios(np.array([[1.0, 2.0, 9.0]]), np.full((1, 3), 10.0), np.zeros(3)).tolist()
        [0.2]
    """
    return np.asarray(np.nanmedian(updates / (weights + floor * np.sqrt(sizes)), axis=-1))


def at_rate(name: str, rate: float | None, rates: Floats, ratios: Floats, reason: str) -> UpdateRule:
    """Take the relative step that a range test made at some learning rate, between its steps by the logarithms of both.

    Args:
        name: the rule's name.
        rate: the learning rate; None where there is none.
        rates: learning rates of the test, rising, shape ``[P]``; beyond them the nearest one counts.
        ratios: its relative steps, shape ``[P]``; steps in which nothing moved are left out.
        reason: what rate that is.

    Returns:
        The rule's value.

    Example:
        >>> at_rate("a", 1e-3, np.array([1e-4, 1e-2]), np.array([1e-3, 1e-1]), "an example").max_update
        0.01
    """
    if rate is None:
        return UpdateRule(name=name, max_update=None, reason=f"{reason}: there is none, the loss is not shown to fall")
    moved = ratios > 0
    if not moved.any():
        return UpdateRule(name=name, max_update=None, reason=f"{reason}: nothing moved")
    value = 10 ** np.interp(np.log10(rate), np.log10(rates[moved]), np.log10(ratios[moved]))
    return UpdateRule(name=name, max_update=rounded(float(value)), reason=f"{reason}, {rate:.2g}")


def first_steps(rate: float, ratios: Floats) -> UpdateRule:
    """Take the relative step that the published recipe makes in its first steps: their mean over steps and seeds.

    Args:
        rate: its learning rate.
        ratios: relative steps at that rate, for each seed and step, shape ``[S, K]``; the first five count.

    Returns:
        The rule's value.

    Example:
        >>> first_steps(2e-5, np.full((1, 9), 0.001)).max_update
        0.001
    """
    mean = float(ratios[:, :_FIRST].mean())
    return UpdateRule(
        name="published-recipe",
        max_update=rounded(mean),
        reason=f"what the learning rate {rate:.2g} does in the first {min(_FIRST, ratios.shape[1])} steps",
    )


def budget_of_run(travel: float, steps: int) -> UpdateRule:
    """Divide a budget over a run: r = R / steps, so that no component travels further than R times its weights' norm.

    Args:
        travel: R; positive.
        steps: optimizer steps of a run.

    Returns:
        The rule's value.

    Raises:
        MeasureError: if R is not positive.

    Example:
        >>> budget_of_run(0.5, 200).max_update
        0.0025
    """
    if not 0 < travel < float("inf"):
        raise MeasureError(
            f"a component cannot be allowed to travel {travel:g} times its weights' norm; give a positive number, such "
            "as 0.5"
        )
    return UpdateRule(
        name="budget",
        max_update=rounded(travel / steps),
        reason=f"no component travels further than {travel:g} times its weights' norm in {steps} steps",
    )
