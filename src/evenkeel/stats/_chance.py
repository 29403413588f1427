"""Whether a run learnt anything: the line between a failed run and a poor one.

A score alone cannot tell. On MRPC, F1 is 0.81 for saying "paraphrase" always, and a run that learnt can score less.
So the question is put to the predictions: do they agree with the labels more often than the same predictions would,
dealt out to the examples at random?
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from evenkeel.errors import DataError
from evenkeel.stats._inputs import equally_many, flat, generator, share, whole
from evenkeel.stats._permutations import permutation_p

_ROUNDING = 1e-9  # Fisher's p of exactly 1/20 comes out as 0.05000000000000001 and is no failure


def better_than_chance(
    labels: ArrayLike, predictions: ArrayLike, *, seed: int | np.random.Generator = 0, permutations: int = 9999
) -> float:
    r"""Return the one-sided p value of the predictions against chance, how often each class occurs being given.

    The statistic is the number of agreements :math:`T`; chance deals the same predictions out to the examples in random
    order. With two classes in all this is Fisher's exact test on the table of labels and predictions. With more it is a
    permutation test over B random tables with the margins of the one seen:

    .. math::

        p = \frac{1 + \#\{b : T_b \ge T\}}{1 + B}

    Constant predictions agree as often in every order, hence p = 1. Predictions that are wrong more often than chance
    get a p near 1 as well.

    Args:
        labels: the true classes as integers, shape ``[n]``.
        predictions: the predicted classes, numbered alike, shape ``[n]``.
        seed: a seed or a generator for the permutations; two classes need none.
        permutations: how many random tables; p is never below ``1 / (1 + permutations)`` where they are used.

    Returns:
        The p value, in (0, 1]. It holds its level: by chance ``p <= alpha`` happens with probability ``alpha`` at most.

    Raises:
        DataError: if labels and predictions are empty, of different lengths, no integers (booleans pass) or not flat;
            if all labels are equal, so that no prediction can be associated with them; if ``seed`` is negative or
            ``permutations`` below 1.

    Source: Fisher 1935, "The Logic of Inductive Inference"; Phipson & Smyth 2010, arXiv 1603.05766 (the added ones).

    Example:
        >>> labels = [0, 0, 0, 1, 1, 1]
        >>> round(better_than_chance(labels, labels), 9)  # one of the 20 ways to deal out three ones
        0.05
        >>> better_than_chance(labels, [1, 1, 1, 1, 1, 1])
        1.0
    """
    rng = generator(seed)
    permutations = whole(permutations, "permutations", at_least=1)
    table = _confusion(labels, predictions)
    if np.count_nonzero(table.sum(axis=0)) == 1:
        return 1.0
    if len(table) == 2:
        return float(stats.fisher_exact(table, alternative="greater").pvalue)
    return _permutation_p(table, rng, permutations)


def failed(
    labels: ArrayLike,
    predictions: ArrayLike,
    *,
    alpha: float = 0.05,
    seed: int | np.random.Generator = 0,
    permutations: int = 9999,
) -> bool:
    """Tell whether a run failed: its predictions are not associated with the labels better than chance.

    That is ``better_than_chance(...) > alpha``, which holds for constant predictions always. A run that diverged has no
    predictions and is failed without being asked.

    Args:
        labels: the true classes as integers, shape ``[n]``.
        predictions: the predicted classes, numbered alike, shape ``[n]``.
        alpha: how often a run that knows nothing may pass, at most; between 0 and 1.
        seed: a seed or a generator for the permutations, which more than two classes need.
        permutations: how many; enough that ``1 / (1 + permutations) <= alpha``.

    Returns:
        True for a failed run.

    Raises:
        DataError: as in `better_than_chance`; if ``alpha`` does not lie between 0 and 1, or so few permutations are
            asked for that no run could pass.

    Example:
        >>> failed([0, 1] * 10, [0, 1] * 10), failed([0, 1] * 10, [1] * 20)
        (False, True)
    """
    alpha, permutations = share(alpha, "alpha"), whole(permutations, "permutations", at_least=1)
    p = better_than_chance(labels, predictions, seed=seed, permutations=permutations)
    return not passes(p, alpha, permutations)


def passes(p: float, alpha: float, permutations: int) -> bool:
    """Tell whether a p value is small enough; a rounding error decides nothing.

    Args:
        p: the p value.
        alpha: the level.
        permutations: how many the p value may have been taken from.

    Returns:
        True if it is ``alpha`` at most.

    Raises:
        DataError: if so few permutations cannot give a p value that small.
    """
    if 1 / (1 + permutations) > alpha:
        raise DataError(
            f"{permutations} permutations cannot give a p value of {alpha} or less, so that every run would fail; "
            f"pass at least {int(np.ceil(1 / alpha)) - 1}"
        )
    return p <= alpha * (1 + _ROUNDING)


def _confusion(labels: ArrayLike, predictions: ArrayLike) -> NDArray[np.int64]:
    """Count labels (rows) against predictions (columns), shape ``[C, C]``, over the C classes that either holds."""
    truth, guess = _classes(labels, "labels"), _classes(predictions, "predictions")
    equally_many(truth, guess)
    if (truth == truth[0]).all():
        raise DataError(
            f"all {truth.size} labels are {truth[0]}, so that nothing can be associated with them; "
            "evaluate on examples of at least two classes"
        )
    classes, codes = np.unique(np.concatenate([truth, guess]), return_inverse=True)
    cells = codes[: truth.size] * classes.size + codes[truth.size :]
    return np.bincount(cells, minlength=classes.size**2).reshape(classes.size, classes.size)


def _classes(values: ArrayLike, name: str) -> NDArray[np.int64]:
    """Return class numbers as an array, shape ``[n]`` with n > 0."""
    array = flat(values, name)
    if not array.size:
        raise DataError(f"{name} are empty, and nothing can be tested on no examples; pass at least two")
    if array.dtype.kind not in "iub":
        raise DataError(
            f"{name} must be class numbers, but they are of type {array.dtype}; "
            "pass integers (of logits, the argmax; of names, their indices)"
        )
    return array.astype(np.int64)


def _permutation_p(table: NDArray[np.int64], rng: np.random.Generator, permutations: int) -> float:
    """Return the share of random tables with the margins of ``table`` that agree at least as often, itself counted."""
    # Permuting predictions and drawing a table with fixed margins give the same counts; a table costs C^2, not n.
    chance = stats.random_table(table.sum(axis=1), table.sum(axis=0))

    def as_good(count: int) -> int:
        agreements = np.trace(chance.rvs(size=count, random_state=rng), axis1=-2, axis2=-1)  # [B, C, C] -> [B]
        return int(np.count_nonzero(agreements >= np.trace(table)))

    return permutation_p(as_good, permutations, numbers=table.size)
