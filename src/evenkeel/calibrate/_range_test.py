"""What the losses of a training with a rising learning rate say: where they fall fastest, and where they rise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evenkeel.calibrate._arrays import Floats
from evenkeel.calibrate._smooth import Smooth, smooth
from evenkeel.errors import MeasureError

__all__ = ["RangeTest", "range_test"]

_WIDTH = 0.25  # decades of the learning rate, standard deviation of the kernel
_SURE = 2.0  # standard errors
_FEWEST = 5  # points of the curve, below which nothing can be said


@dataclass(frozen=True, kw_only=True)
class RangeTest:
    """A range test of the learning rate, analysed.

    Attributes:
        rates: learning rates, shape ``[P]``.
        losses: for each seed the loss after the step of that rate, shape ``[S, P]``.
        curve: the smoothed mean of the losses; slopes are by decade of the rate.
        start: the mean loss over the first decade of rates, in which hardly anything moves.
        lowest: the rate at which the smoothed loss is lowest.
        falls: whether it is lower there than at the start by more than two standard errors.
        steepest: the rate of steepest descent; None if the loss does not fall.
        stable: the highest rate before the loss rises for good, or explodes; the last one if it does neither.
        rises: whether it does either.
    """

    rates: Floats
    losses: Floats
    curve: Smooth
    start: float
    lowest: float
    falls: bool
    steepest: float | None
    stable: float
    rises: bool


def range_test(rates: Floats, losses: Floats) -> RangeTest:
    """Find where the loss falls fastest and where it begins to rise, as the learning rate rises.

    The loss of a step is seen before its weights are changed, so that what a rate did is seen in the loss of the next
    step. The mean over seeds is smoothed along the logarithm of the rate (:func:`smooth`, a quarter of a decade wide).
    It rises for good from the rate on from which it stays above its lowest value by more than two standard errors.

    Source: Smith 2017, arXiv 1506.01186, section 3.3; errors and their use are ours.

    Args:
        rates: the rate of each step, rising, shape ``[K]``.
        losses: for each seed the loss of each step, shape ``[S, K]``; NaN from where a training ended because its loss
            had exploded. What comes after the end of any of them is left out.

    Returns:
        The analysis, of P = K - 1 rates or less.

    Raises:
        MeasureError: if there are less than six losses before the first training ended.
    """
    ended = np.flatnonzero(~np.isfinite(losses).all(axis=0))
    exploded = len(ended) > 0
    points = (int(ended[0]) if exploded else len(rates)) - 1
    if points < _FEWEST:
        raise MeasureError(
            f"the range test has only {points + 1} losses before it ends, or one explodes, at the learning rate "
            f"{rates[max(0, points)]:.2g}, and needs {_FEWEST + 1}; look at the data and the model, or begin it lower"
        )
    rates, losses = rates[:points], losses[:, 1 : points + 1]
    curve = smooth(np.log10(rates), losses, _WIDTH)
    first = losses[:, rates <= 10 * rates[0]]
    start, start_error = float(first.mean()), float(first.std() / np.sqrt(first.size))
    low = int(np.argmin(curve.values))
    falls = bool(start - curve.values[low] > _SURE * np.hypot(start_error, curve.errors[low]))
    above = curve.values - curve.values[low] > _SURE * np.hypot(curve.errors, curve.errors[low])
    border = points - _set_at_end(above)  # from here on it is above; not at the lowest itself, so never 0
    return RangeTest(
        rates=rates,
        losses=losses,
        curve=curve,
        start=start,
        lowest=float(rates[low]),
        falls=falls,
        steepest=float(rates[np.argmin(curve.slopes[: low + 1])]) if falls else None,
        stable=float(rates[border - 1]),
        rises=bool(exploded or above[-1]),
    )


def _set_at_end(flags: NDArray[np.bool_]) -> int:
    """Count how many in a row are set at the end; not all are."""
    return int(np.argmin(flags[::-1]))
