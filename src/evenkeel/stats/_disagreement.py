"""How much runs that score alike disagree on single examples."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from evenkeel.errors import DataError


def disagreement(predictions: ArrayLike) -> float:
    r"""Return the share of examples on which two runs predict different labels, averaged over all pairs of runs.

    With :math:`R` runs, of which :math:`k_{ec}` predict label :math:`c` for example :math:`e`:

    .. math::

        1 - \frac{1}{N} \sum_e \sum_c \frac{k_{ec} (k_{ec} - 1)}{R (R - 1)}

    Runs with the same score may be right on different examples; the standard deviation of scores hides that.

    Args:
        predictions: labels, integers or texts, shape ``[R, N]``: the runs' predictions for the same examples, in the
            same order.

    Returns:
        A share, 0 where all runs agree everywhere; NaN for fewer than two runs, or without examples.

    Raises:
        DataError: if there are not exactly two axes.

    Source: Dodge et al. 2020, arXiv 2002.06305, and Zhou et al. 2020, arXiv 2004.13606, on what equal scores hide; as
    "churn", Milani Fard et al. 2016, "Launch and Iterate".

    Example:
        >>> round(disagreement([[0, 1, 1, 0], [0, 1, 0, 0], [0, 1, 1, 1]]), 4)
        0.3333
    """
    labels = np.asarray(predictions)
    if labels.ndim != 2:
        raise DataError(
            f"predictions must have two axes, runs and examples, but their shape is {labels.shape}; pass one row a run"
        )
    runs, examples = labels.shape
    if runs < 2 or not examples:
        return float("nan")
    _, codes = np.unique(labels, return_inverse=True)
    codes = codes.reshape(labels.shape)
    same = np.zeros(examples)
    for code in range(int(codes.max()) + 1):
        counts = np.count_nonzero(codes == code, axis=0)
        same += counts * (counts - 1)
    return float(1 - same.mean() / (runs * (runs - 1)))
