"""Thresholds for clipping by component, from norms that were seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evenkeel.calibrate._arrays import Floats, rounded
from evenkeel.errors import MeasureError

__all__ = ["PAPER", "RoleThreshold", "check_quantile", "role_thresholds"]

PAPER = 0.05  # the headline threshold of Yang & Ma 2022
_NOTHING = 1e-6  # times the largest norm of a role: what rounding leaves of a gradient that is zero
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, kw_only=True)
class RoleThreshold:
    """A threshold for the components of one role.

    Attributes:
        role: the role.
        max_norm: the threshold, to two digits; infinite where no gradient was seen.
        clipped: share of gradients (one component at one step) whose norm is above it.
        most_clipped: the same of the component that it clips most often.
        clipped_by_paper: share of gradients whose norm is above the paper's 0.05.
        norms: quantiles of the norms at .05, .25, .5, .75 and .95; what is left out of
            the quantile is left out of these.
    """

    role: str
    max_norm: float
    clipped: float
    most_clipped: float
    clipped_by_paper: float
    norms: tuple[float, ...]


def role_thresholds(norms: Floats, roles: Sequence[str | None], quantile: float) -> list[RoleThreshold]:
    """Propose for each role the quantile of its gradient norms, all components and steps of all seeds together.

    Norms below a millionth of the role's largest are left out of the quantile: some components have no gradient by
    their nature, as a key's bias, which softmax does not see, and what rounding leaves of it says nothing.

    Args:
        norms: gradient norms before clipping, of N steps and C components, shape ``[N, C]``; NaN where there is none.
        roles: the role of each component, shape ``[C]``; None is the role ``other``.
        quantile: between 0 and 1; the share of gradients that are left alone.

    Returns:
        One threshold for each role, in the order in which roles appear.

    Raises:
        MeasureError: if the quantile is not between 0 and 1.

    Example:
        >>> found = role_thresholds(np.array([[1.0, 0.1], [2.0, 0.1], [3.0, 0.1]]), ["head", "query"], 0.5)
        >>> [(one.role, one.max_norm, round(one.clipped, 2)) for one in found]
        [('head', 2.0, 0.33), ('query', 0.1, 0.0)]
    """
    check_quantile(quantile)
    named = np.array([role or "other" for role in roles])
    return [_threshold(str(role), norms[:, named == role], quantile) for role in dict.fromkeys(named)]


def check_quantile(quantile: float) -> None:
    """Refuse what is no share.

    Args:
        quantile: of the norms.

    Raises:
        MeasureError: if it is not between 0 and 1.
    """
    if not 0 < quantile < 1:
        raise MeasureError(
            f"thresholds at the quantile {quantile:g} of the norms would clip everything or nothing; give a number "
            "between 0 and 1, such as 0.9, which clips a tenth"
        )


def _threshold(role: str, norms: Floats, quantile: float) -> RoleThreshold:
    finite = norms[np.isfinite(norms)]
    seen = finite[finite > _NOTHING * finite.max(initial=0.0)]
    limit = rounded(float(np.quantile(seen, quantile))) if seen.size else math.inf
    above = np.where(np.isnan(norms), np.nan, norms > limit)
    return RoleThreshold(
        role=role,
        max_norm=limit,
        clipped=float(np.nanmean(above)),
        most_clipped=float(np.nanmax(np.nanmean(above, axis=0))),
        clipped_by_paper=float(np.nanmean(np.where(np.isnan(norms), np.nan, norms > PAPER))),
        norms=tuple(float(value) for value in np.quantile(seen, _QUANTILES)) if seen.size else (0.0,) * len(_QUANTILES),
    )
