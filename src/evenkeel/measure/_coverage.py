"""How soon a component has covered its way."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from evenkeel.measure._arrays import Floats, line, rising, share_of, table

__all__ = ["coverage", "half_time", "time_to"]


def coverage(distances: ArrayLike) -> Floats:
    r"""Return the share of its final distance that a component has covered by each step.

    .. math::

        c_s = d_s / d_S

    with :math:`d_s` its distance from the weights before training (``rms_change``) after recorded step s, and S the
    last step at which it was recorded. One that goes beyond its final distance and comes back has shares above 1.

    Args:
        distances: shape ``[S]``, or ``[S, C]`` for C components; NaN where one was not recorded.

    Returns:
        Shares, of the same shape; NaN where a component was not recorded, and for all steps of one whose last distance
        is 0 or not finite.

    Raises:
        MeasureError: if ``distances`` have another number of axes.

    Source: ours; "convergence racing" is Yang & Ma 2022, arXiv 2210.10325, section 3.

    Example:
        >>> coverage([1.0, 3.0, 4.0]).tolist()
        [0.25, 0.75, 1.0]
    """
    values = table(distances, "distances")
    if not values.size:
        return values
    known = ~np.isnan(values)
    last = len(values) - 1 - np.argmax(known[::-1], axis=0)
    final = np.take_along_axis(values, np.expand_dims(last, 0), axis=0)
    final = np.where(np.isfinite(final) & (final > 0), final, np.nan)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(values / final, dtype=np.float64)


def time_to(times: ArrayLike, distances: ArrayLike, share: float) -> float:
    r"""Return when a component has first covered a share of its final distance.

    .. math::

        t_q = \min \{ t : c(t) \ge q \}

    where c runs in a straight line from (0, 0) through the recorded steps, see :func:`coverage`. Where times are shares
    of training, so is the result.

    Args:
        times: when each distance was recorded, rising, 0 being the beginning of training; shape ``[S]``.
        distances: distances of one component, shape ``[S]``; NaN where it was not recorded.
        share: the share q.

    Returns:
        The time, in the unit of ``times``; NaN of a component that never moved, or whose last distance is not finite.

    Raises:
        MeasureError: if times do not rise, there are not as many distances, or ``share`` is none.

    Source: ours.

    Example:
        >>> time_to([0.25, 0.5, 1.0], [1.0, 3.0, 4.0], 0.5)            # half way between 1 and 3
        0.375
    """
    moments = rising(times, "times")
    shares = coverage(line(distances, "distances", like=moments))
    share = share_of(share, "share")
    known = ~np.isnan(shares)
    if not known.any():
        return float("nan")
    moments = np.concatenate([[0.0], moments[known]])
    shares = np.concatenate([[0.0], shares[known]])
    first = int(np.argmax(shares >= share))  # the last share is 1; the first is 0, which no share is
    gained = (share - shares[first - 1]) / (shares[first] - shares[first - 1])
    return float(moments[first - 1] + gained * (moments[first] - moments[first - 1]))


def half_time(times: ArrayLike, distances: ArrayLike) -> float:
    r"""Return when a component has covered half of its final distance, :math:`t_{1/2}` of :func:`time_to`.

    Args:
        times: when each distance was recorded, rising; shape ``[S]``.
        distances: distances of one component, shape ``[S]``; NaN where it was not recorded.

    Returns:
        The time, in the unit of ``times``; NaN of a component that never moved.

    Raises:
        MeasureError: as :func:`time_to`.

    Source: ours.

    Example:
        >>> half_time([0.5, 1.0], [1.0, 1.0])            # all of the way in the first half
        0.25
    """
    return time_to(times, distances, 0.5)
