from __future__ import annotations

import dataclasses
import math
import os
import statistics
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.stats import describe

SCORES = st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=1, max_size=40)


def test_eight_scores_by_hand() -> None:
    cell = describe([8, 1, 2, 3, 4, 5, 6, 100])  # sorted: 1 2 | 3 4 5 6 | 8 100
    assert (cell.n, cell.min, cell.median, cell.max) == (8, 1.0, 4.5, 100.0)
    assert cell.interquartile_mean == 4.5
    assert cell.mean == 129 / 8


@given(SCORES)
def test_agrees_with_the_standard_library(scores: list[float]) -> None:
    cell = describe(scores)
    assert cell.n == len(scores)
    assert cell.mean == pytest.approx(statistics.fmean(scores), abs=1e-9)
    assert cell.median == pytest.approx(statistics.median(scores), abs=1e-9)
    cut = len(scores) // 4
    assert cell.interquartile_mean == pytest.approx(statistics.fmean(sorted(scores)[cut : len(scores) - cut]), abs=1e-9)
    if len(scores) > 1:
        assert cell.std == pytest.approx(statistics.stdev(scores), abs=1e-9)


def test_equal_scores_have_no_spread_at_all() -> None:
    assert np.std([0.1] * 3, ddof=1) > 0  # what rounding makes of it without care
    assert describe([0.1] * 3).std == 0


def test_one_score_has_everything_but_a_spread() -> None:
    cell = describe([0.7])
    assert math.isnan(cell.std)
    assert cell.mean == cell.min == cell.median == cell.max == cell.interquartile_mean == 0.7


def test_no_score_is_counted_as_none() -> None:
    n, *others = dataclasses.astuple(describe([]))
    assert n == 0
    assert all(math.isnan(value) for value in others)


def test_the_room_loads_no_torch() -> None:
    code = "import sys, evenkeel.stats; print({'torch', 'transformers', 'pandas'} & set(sys.modules))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
