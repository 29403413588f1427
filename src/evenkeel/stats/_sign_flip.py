"""Whether values are higher than what they are paired with: for models that give likelihoods and no answers."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from evenkeel.errors import DataError
from evenkeel.stats._inputs import generator, numbers, whole
from evenkeel.stats._permutations import permutation_p

_ROUNDING = 1e-12  # of sums that are equal but for the order of their terms, relative to their largest possible value


def sign_flip_p(differences: ArrayLike, *, seed: int | np.random.Generator = 0, permutations: int = 9999) -> float:
    r"""Return the one-sided p value of paired differences against chance, under which each is as likely negative.

    The statistic is their sum :math:`S`; chance flips each sign with probability 1/2, B times:

    .. math::

        p = \frac{1 + \#\{b : S_b \ge S\}}{1 + B}

    Differences that are all 0 have p = 1.

    Args:
        differences: of independent pairs, shape ``[n]``.
        seed: a seed or a generator for the signs.
        permutations: how many times; p is never below ``1 / (1 + permutations)``.

    Returns:
        The p value, in (0, 1]. It holds its level: by chance ``p <= alpha`` happens with probability ``alpha`` at most.

    Raises:
        DataError: if there are none, or one is not finite; if ``seed`` is negative or ``permutations`` below 1.

    Source: Fisher 1935, "The Design of Experiments", section 21; Phipson & Smyth 2010, arXiv 1603.05766 (the added
        ones).

    Example:
        >>> sign_flip_p([1.0, 0.5, 2.0, 1.5, 0.25, 3.0]) < 0.05, sign_flip_p([0.0, 0.0])
        (True, 1.0)
    """
    rng, permutations = generator(seed), whole(permutations, "permutations", at_least=1)
    values = numbers(differences, "differences")
    if not values.size:
        raise DataError("differences are empty, and nothing can be tested on no pairs; pass at least one")
    seen = values.sum() - _ROUNDING * np.abs(values).sum()

    def as_good(count: int) -> int:
        signs = rng.integers(0, 2, size=(count, values.size), dtype=np.int8) * 2 - 1  # [B, n]
        return int(np.count_nonzero(signs @ values >= seen))

    return permutation_p(as_good, permutations, numbers=values.size)
