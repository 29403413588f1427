"""Smoothing of a noisy curve, with the slope that it has and the error that is left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evenkeel.calibrate._arrays import Floats
from evenkeel.errors import MeasureError

__all__ = ["Smooth", "smooth"]


@dataclass(frozen=True, kw_only=True)
class Smooth:
    """A smoothed curve at its K places.

    Attributes:
        values: the curve, shape ``[K]``.
        slopes: its slope, shape ``[K]``; in units of the curve by units of the places.
        errors: standard errors of the values, shape ``[K]``.
    """

    values: Floats
    slopes: Floats
    errors: Floats


def smooth(places: Floats, curves: Floats, width: float) -> Smooth:
    r"""Fit a straight line around every place, by least squares with Gaussian weights (local linear regression).

    .. math::

        (a_i, b_i) = \arg\min_{a, b} \sum_j e^{-(x_j - x_i)^2 / 2 h^2} (\bar y_j - a - b (x_j - x_i))^2

    :math:`\bar y` being the mean of the curves; :math:`a` are the values, :math:`b` the slopes. It does not lag behind
    the curve, as a running mean does, and leaves a straight line as it is. The standard error is that of :math:`a`,
    with the variance of single points about the smoothed curve, around each place (kernel of twice the width).

    Source: Cleveland & Devlin 1988, Locally weighted regression, JASA 83(403).

    Args:
        places: x, rising, shape ``[K]``, K at least 2.
        curves: y, shape ``[S, K]``; finite.
        width: h, in units of the places; positive.

    Returns:
        The smoothed mean of the curves.

    Raises:
        MeasureError: if there are less than two places, the shapes do not belong together, or a value is not finite.

    Example:
        >>> x = np.arange(5.0)
        >>> found = smooth(x, np.stack([2 * x, 2 * x + 2]), width=1.0)
        >>> found.values.round(6).tolist(), found.slopes.round(6).tolist()
        ([1.0, 3.0, 5.0, 7.0, 9.0], [2.0, 2.0, 2.0, 2.0, 2.0])
    """
    if curves.ndim != 2 or places.shape != curves.shape[1:] or len(places) < 2 or not len(curves):
        raise MeasureError(
            f"curves of the shape {curves.shape} at places of the shape {places.shape} cannot be smoothed; give [S, K] "
            "and [K], K at least 2"
        )
    if not (np.isfinite(curves).all() and np.isfinite(places).all()):
        raise MeasureError("a curve with values that are no numbers cannot be smoothed; cut it where they begin")
    apart = places[None, :] - places[:, None]  # [K, K]: x_j - x_i
    weights = np.exp(-0.5 * (apart / width) ** 2)
    total, first, second = (np.sum(weights * apart**power, axis=1, keepdims=True) for power in (0, 1, 2))
    spread = total * second - first**2
    level = weights * (second - first * apart) / spread  # [K, K]: a = level @ y
    slope = weights * (total * apart - first) / spread
    mean = curves.mean(axis=0)
    values = level @ mean
    wide = np.exp(-0.5 * (apart / (2 * width)) ** 2)
    variance = (wide / wide.sum(axis=1, keepdims=True)) @ ((curves - values) ** 2).mean(axis=0)
    errors = np.sqrt(variance * (level**2).sum(axis=1) / len(curves))
    return Smooth(values=values, slopes=slope @ mean, errors=errors)
