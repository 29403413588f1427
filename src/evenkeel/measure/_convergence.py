"""How fast a run converges, by its scores or its losses."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from evenkeel.measure._arrays import line, rising, share_of

__all__ = ["loss_area", "steps_to"]


def steps_to(
    steps: ArrayLike, values: ArrayLike, share: float, *, start: float | None = None, final: float | None = None
) -> float:
    r"""Return the steps that a run takes to a share of its way, up with a score or down with a loss.

    .. math::

        s_q = \min \Big\{ s : \frac{v(s) - v_0}{v_S - v_0} \ge q \Big\}

    where v runs in a straight line through the values, from :math:`(0, v_0)` on where ``start`` is given.

    Args:
        steps: when values were taken, rising; shape ``[S]``.
        values: scores or losses, shape ``[S]``; NaN is passed over.
        share: the share q.
        start: the value before training, such as the score of guessing; None takes the first value as it was logged.
        final: the value that counts as the whole way; None takes the last one.

    Returns:
        The steps; NaN where there are no values, the way is 0, or the share is never reached.

    Raises:
        MeasureError: if steps do not rise, there are not as many values, or ``share`` is none.

    Source: ours.

    Example:
        >>> steps_to([10, 20, 30], [0.625, 0.875, 1.0], 0.5, start=0.5)            # half way is 0.75
        15.0
        >>> steps_to([1, 11, 21], [1.0, 0.25, 0.0], 0.75)            # down to 0.25
        11.0
    """
    moments = rising(steps, "steps")
    found = line(values, "values", like=moments)
    share = share_of(share, "share")
    known = np.isfinite(found)
    moments, found = moments[known], found[known]
    if start is not None:
        later = moments > 0
        moments, found = np.concatenate([[0.0], moments[later]]), np.concatenate([[start], found[later]])
    if not found.size:
        return float("nan")
    way = (found[-1] if final is None else final) - found[0]
    if way == 0 or not np.isfinite(way):
        return float("nan")
    covered = (found - found[0]) / way
    if not (covered >= share).any():
        return float("nan")
    first = int(np.argmax(covered >= share))  # not the very first, whose share is 0
    gained = (share - covered[first - 1]) / (covered[first] - covered[first - 1])
    return float(moments[first - 1] + gained * (moments[first] - moments[first - 1]))


def loss_area(steps: ArrayLike, losses: ArrayLike) -> float:
    r"""Return the area under the loss curve, per step: the mean loss over training.

    .. math::

        \frac{1}{s_S - s_1} \sum_{i=1}^{S-1} \frac{l_i + l_{i+1}}{2} (s_{i+1} - s_i)

    The lower, the sooner a run learnt; runs of other lengths can be compared.

    Args:
        steps: when losses were logged, rising; shape ``[S]``.
        losses: the losses, shape ``[S]``.

    Returns:
        The mean, in the unit of the loss; NaN where there is none, or a loss is not finite.

    Raises:
        MeasureError: if steps do not rise, or there are not as many losses.

    Source: ours; the trapezoidal rule.

    Example:
        >>> loss_area([0, 10, 30], [1.0, 0.5, 0.5])
        0.5833333333333334
    """
    moments = rising(steps, "steps")
    found = line(losses, "losses", like=moments)
    if not found.size or not np.isfinite(found).all():
        return float("nan")
    if found.size == 1:
        return float(found[0])
    middles = (found[1:] + found[:-1]) / 2
    return float((middles * np.diff(moments)).sum() / (moments[-1] - moments[0]))
