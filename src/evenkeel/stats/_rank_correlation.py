"""Whether a regression learnt anything: the line between a failed run and a poor one where labels are numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from evenkeel.errors import DataError
from evenkeel.stats._chance import passes
from evenkeel.stats._inputs import equally_many, generator, numbers, share, whole
from evenkeel.stats._permutations import permutation_p


def rank_correlation_p(
    labels: ArrayLike, predictions: ArrayLike, *, seed: int | np.random.Generator = 0, permutations: int = 9999
) -> float:
    r"""Return the one-sided p value of the predictions against chance, where labels and predictions are numbers.

    The statistic is Spearman's rank correlation :math:`\rho`, ties having their mean rank; chance deals the same
    predictions out to the examples in random order, B times:

    .. math::

        p = \frac{1 + \#\{b : \rho_b \ge \rho\}}{1 + B}

    Ranks ask for no more than that predictions rise with the labels: neither for a scale nor for a straight line.
    Constant predictions rise with nothing, hence p = 1. Predictions that fall where labels rise get a p near 1 as well.

    Args:
        labels: the true values, shape ``[n]``.
        predictions: the predicted values, shape ``[n]``.
        seed: a seed or a generator for the permutations.
        permutations: how many; p is never below ``1 / (1 + permutations)``.

    Returns:
        The p value, in (0, 1]. It holds its level: by chance ``p <= alpha`` happens with probability ``alpha`` at most.

    Raises:
        DataError: if labels and predictions are empty, of different lengths, not finite or not flat; if all labels are
            equal, so that no prediction can be associated with them; if ``seed`` is negative or ``permutations``
            below 1.

    Source: Spearman 1904, "The Proof and Measurement of Association between Two Things"; Phipson & Smyth 2010,
        arXiv 1603.05766 (the added ones).

    Example:
        >>> rank_correlation_p([0.5, 1, 2, 4, 8], [1, 2, 3, 4, 5], permutations=199) < 0.05
        True
        >>> rank_correlation_p([0.5, 1, 2, 4, 8], [3, 3, 3, 3, 3])
        1.0
    """
    rng = generator(seed)
    permutations = whole(permutations, "permutations", at_least=1)
    truth, guess = _checked(labels, predictions)
    if (guess == guess[0]).all():
        return 1.0
    return _permutation_p(_centred_ranks(truth), _centred_ranks(guess), rng, permutations)


def failed_regression(
    labels: ArrayLike,
    predictions: ArrayLike,
    *,
    alpha: float = 0.05,
    seed: int | np.random.Generator = 0,
    permutations: int = 9999,
) -> bool:
    """Tell whether a regression failed: its predictions do not rise with the labels better than chance.

    That is ``rank_correlation_p(...) > alpha``, which holds for constant predictions always. A run that diverged has no
    predictions and is failed without being asked.

    Args:
        labels: the true values, shape ``[n]``.
        predictions: the predicted values, shape ``[n]``.
        alpha: how often a run that knows nothing may pass, at most; between 0 and 1.
        seed: a seed or a generator for the permutations.
        permutations: how many; enough that ``1 / (1 + permutations) <= alpha``.

    Returns:
        True for a failed run.

    Raises:
        DataError: as in `rank_correlation_p`; if ``alpha`` does not lie between 0 and 1, or so few permutations are
            asked for that no run could pass.

    Example:
        >>> failed_regression(range(20), range(20)), failed_regression(range(20), [2.5] * 20)
        (False, True)
    """
    alpha, permutations = share(alpha, "alpha"), whole(permutations, "permutations", at_least=1)
    p = rank_correlation_p(labels, predictions, seed=seed, permutations=permutations)
    return not passes(p, alpha, permutations)


def _checked(labels: ArrayLike, predictions: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    truth, guess = numbers(labels, "labels"), numbers(predictions, "predictions")
    equally_many(truth, guess)
    if not truth.size:
        raise DataError("labels are empty, and nothing can be tested on no examples; pass at least two")
    if (truth == truth[0]).all():
        raise DataError(
            f"all {truth.size} labels are {truth[0]}, so that nothing can be associated with them; "
            "evaluate on examples of different values"
        )
    return truth, guess


def _centred_ranks(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return twice the rank less its mean, shape ``[n]``: whole numbers, whose sums of products are exact."""
    ranks: NDArray[np.float64] = stats.rankdata(values)
    return np.rint(2 * ranks).astype(np.int64) - (values.size + 1)


def _permutation_p(
    truth: NDArray[np.int64], guess: NDArray[np.int64], rng: np.random.Generator, permutations: int
) -> float:
    """Return the share of orders of ``guess`` that go with ``truth`` at least as well, the one seen counted."""
    # Variances do not depend on the order, so the sum of products says what the correlation would.
    seen = int(truth @ guess)

    def as_good(count: int) -> int:
        drawn = rng.permuted(np.broadcast_to(guess, (count, guess.size)), axis=1)  # [B, n]
        return int(np.count_nonzero(drawn @ truth >= seen))

    return permutation_p(as_good, permutations, numbers=guess.size)
