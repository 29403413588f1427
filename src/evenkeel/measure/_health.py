"""Signs that a training goes wrong: gradients that vanish, losses that jump, numbers that are none."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evenkeel.errors import MeasureError
from evenkeel.measure._arrays import Floats, line, table

__all__ = ["Vanishing", "nonfinite", "share_clipped", "spikes", "vanishing"]

FIRST_STEPS = 0.1  # share of the recorded steps that counts as the beginning
VANISHED = 0.01  # of its norm at the beginning; a layer that is left with less has vanished
LAYERS = 0.5  # share of layers; with so many vanished the run counts

_WINDOW, _FEWEST = 10, 5  # logged losses before the one in question
_DEVIATIONS, _JUMP = 5.0, 0.25
_NORMAL = 1.4826  # standard deviations of a normal distribution in one median absolute deviation


@dataclass(frozen=True, kw_only=True)
class Vanishing:
    """How much of its gradient norm each layer is left with.

    Attributes:
        ratios: median norm in the last half over that in the first steps, shape ``[L]``; NaN where it cannot be told.
        share: the share of layers that vanished, of those with a ratio; NaN without any.
        vanished: whether the run's gradients vanished.
    """

    ratios: Floats
    share: float
    vanished: bool


def vanishing(norms: ArrayLike, reference: ArrayLike | None = None) -> Vanishing:
    r"""Say whether the gradients of layers collapsed during training.

    .. math::

        r_l = \frac{\mathrm{median}_{s \in \text{last half}} \; g_l(s) / h(s)}
        {\mathrm{median}_{s \in \text{first tenth}} \; g_l(s) / h(s)}

    with :math:`g_l` a layer's gradient norm and h a reference: the norm of the head's gradient. Where a model has
    learnt its data, all gradients shrink, that of the head among them; where gradients vanish, the head goes on getting
    one and the layers below it do not. A layer has vanished with :math:`r_l < 1/100`, a run with half of its layers.

    Args:
        norms: gradient norms of L layers at S recorded steps, shape ``[S, L]``; NaN where a layer was not trained.
        reference: norms of the head, shape ``[S]``; None takes 1.

    Returns:
        The ratios, and what follows.

    Raises:
        MeasureError: if the shapes do not fit.

    Source: the sign is that of Mosbach, Andriushchenko & Klakow 2021, arXiv 2006.04884, section 5.1, who show that the
        norms of failed runs collapse; the constants and the reference are ours.

    Example:
        >>> found = vanishing([[1.0, 1.0]] * 2 + [[1e-5, 0.5]] * 8)
        >>> found.ratios.tolist(), found.share, found.vanished
        ([1e-05, 0.5], 0.5, True)
    """
    values = table(norms, "norms")
    if values.ndim != 2:
        raise MeasureError(f"norms must be of shape [steps, layers], but it is {values.shape}; pass all layers at once")
    if reference is not None:
        head = line(reference, "reference norms", like=values)
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.where(head[:, None] > 0, values / head[:, None], np.nan)
    ratios = np.array([_left(column[np.isfinite(column)]) for column in values.T], dtype=np.float64)
    known = ratios[np.isfinite(ratios)]
    share = float((known < VANISHED).mean()) if known.size else float("nan")
    return Vanishing(ratios=ratios, share=share, vanished=bool(known.size and share >= LAYERS))


def _left(values: Floats) -> float:
    count = math.ceil(FIRST_STEPS * len(values))
    late = values[len(values) // 2 :]
    if len(values) < 2 or np.median(values[:count]) == 0:
        return float("nan")
    return float(np.median(late) / np.median(values[:count]))


def spikes(losses: ArrayLike) -> NDArray[np.bool_]:
    r"""Say which logged losses jump above those before them.

    .. math::

        l_i > m_i + \max(5 \cdot 1.4826 \, \mathrm{MAD}_i, \; |m_i| / 4)

    with the median m and the median absolute deviation MAD of the ten losses before; of the first five nothing is said.

    Args:
        losses: as logged, in order, shape ``[S]``; what is not finite is no spike and is passed over.

    Returns:
        Whether each is a spike, shape ``[S]``.

    Raises:
        MeasureError: if there is another number of axes.

    Source: ours; the robust z-score is Iglewicz & Hoaglin 1993.

    Example:
        >>> spikes([0.7, 0.6, 0.6, 0.5, 0.5, 0.5, 2.0, 0.5]).tolist()
        [False, False, False, False, False, False, True, False]
    """
    values = line(losses, "losses")
    found = np.zeros(values.shape, dtype=np.bool_)
    places = np.flatnonzero(np.isfinite(values))
    for number, place in enumerate(places):
        before = values[places[max(0, number - _WINDOW) : number]]
        if len(before) >= _FEWEST:
            middle = np.median(before)
            spread = _NORMAL * np.median(np.abs(before - middle))
            found[place] = values[place] > middle + max(_DEVIATIONS * spread, _JUMP * abs(middle))
    return found


def share_clipped(coefficients: ArrayLike) -> Floats:
    """Return in which share of the recorded steps the gradient of a component was made smaller.

    Args:
        coefficients: what gradients were multiplied by, shape ``[S]`` or ``[S, C]``; NaN where that is not known.

    Returns:
        Shares of the steps with a coefficient, shape ``[]`` or ``[C]``; NaN where there is none.

    Raises:
        MeasureError: if there is another number of axes.

    Source: ours.

    Example:
        >>> share_clipped([[1.0, 0.5], [0.1, 0.2]]).tolist()
        [0.5, 1.0]
    """
    values = table(coefficients, "coefficients")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is NaN, as it is to be
        clipped = np.where(np.isnan(values), np.nan, values < 1)
        return np.asarray(np.nanmean(clipped, axis=0) if len(values) else np.full(values.shape[1:], np.nan))


def nonfinite(values: ArrayLike) -> NDArray[np.bool_]:
    """Say in which steps a number was NaN or infinite.

    Args:
        values: losses, shape ``[S]``, or norms, shape ``[S, C]``, of what was recorded.

    Returns:
        Whether any number of a step is not finite, shape ``[S]``.

    Raises:
        MeasureError: if there is another number of axes.

    Source: ours.

    Example:
        >>> nonfinite([[0.5, 1.0], [float("nan"), 1.0]]).tolist()
        [False, True]
    """
    found = table(values, "values")
    finite = np.isfinite(found)
    return np.asarray(~(finite if finite.ndim == 1 else finite.all(axis=1)), dtype=np.bool_)
