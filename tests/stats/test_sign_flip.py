from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from evenkeel.errors import DataError
from evenkeel.stats import _permutations, sign_flip_p


@pytest.mark.parametrize(
    "differences", [[1.0, 2.0, -0.5, 3.0, 0.25, 0.0], [0.1] * 7, [-1.0, -2.0, 0.5], [1e-9, 2e9, -1.0, 4.0]]
)
def test_it_follows_all_signs(differences: list[float]) -> None:
    sums = [np.dot(signs, differences) for signs in itertools.product((-1, 1), repeat=len(differences))]
    exact = float(np.mean([found >= sum(differences) - 1e-12 * sum(map(abs, differences)) for found in sums]))
    error = math.sqrt(exact * (1 - exact) / 9999)
    assert sign_flip_p(differences) == pytest.approx(exact, abs=4 * error + 1.1e-4)


def test_nothing_gained_is_no_gain() -> None:
    assert sign_flip_p([0.0] * 40) == 1.0


def test_gains_by_chance_pass_no_more_often_than_alpha() -> None:
    rng, runs, alpha = np.random.default_rng(0), 400, 0.1
    passed = sum(sign_flip_p(rng.standard_t(2, size=20), seed=rng, permutations=199) <= alpha for _ in range(runs))
    assert 0 < passed / runs <= alpha + 2.5 * math.sqrt(alpha * (1 - alpha) / runs)


def test_signs_are_drawn_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.ones(50)
    monkeypatch.setattr(_permutations, "_NUMBERS_AT_ONCE", 170)  # three rows at a time
    assert sign_flip_p(values, permutations=99) == 1 / 100


@pytest.mark.parametrize(
    ("differences", "options", "said"),
    [
        ([], {}, "differences are empty"),
        ([1.0, math.nan], {}, r"differences\[1\] is nan"),
        ([[1.0]], {}, "one axis"),
        ([1.0], {"seed": -1}, "seed"),
        ([1.0], {"permutations": 0}, "permutations must be at least 1"),
    ],
)
def test_what_cannot_be_tested_is_refused(differences: Any, options: dict[str, int], said: str) -> None:
    with pytest.raises(DataError, match=said):
        sign_flip_p(differences, **options)
