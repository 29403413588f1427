from __future__ import annotations

import numpy as np
import pyarrow as pa

from evenkeel.report._figure_data import loss_curves, strip, value_range
from evenkeel.report._results import cells


def log(steps, losses) -> pa.Table:
    return pa.table({"step": pa.array(steps, pa.int32()), "loss": pa.array(losses, pa.float64())})


def test_a_strip_holds_scores_by_seed(make_runs) -> None:
    found = strip(cells(*make_runs({"full": [0.7, 0.55, "diverged", "queued", 0.6]}))[0])
    assert (found.seeds, found.scores) == ((1, 2, 5), (0.7, 0.55, 0.6))
    assert found.failed == (False, True, False)
    assert found.diverged == (3,)


def test_losses_share_an_axis_of_steps(make_cell) -> None:
    nan = float("nan")
    logs = [log([5, 10, 15], [0.7, 0.5, 0.3]), log([5, 10, 15], [0.6, 0.6, 0.1]), log([5, 7], [0.9, nan]), None, None]
    curves = loss_curves(*make_cell([0.7, 0.8, "diverged", 0.9, "queued"], log=logs))
    assert curves.steps == (5, 7, 10, 15)
    assert curves.seeds == (1, 2, 3)
    assert curves.failed == (False, False, True)
    expected = [[0.7, nan, 0.5, 0.3], [0.6, nan, 0.6, 0.1], [0.9, nan, nan, nan]]
    np.testing.assert_array_equal(curves.losses, expected)
    assert curves.unlogged == 1
    median, low, high = curves.summary()
    np.testing.assert_allclose(median, [0.65, nan, 0.55, 0.2])  # of the runs that did not fail
    np.testing.assert_array_equal(low, [0.6, nan, 0.5, 0.1])
    np.testing.assert_array_equal(high, [0.7, nan, 0.6, 0.3])
    assert value_range([curves.losses]) == (0.1, 0.9)


def test_losses_of_failed_runs_alone_have_no_median(make_cell) -> None:
    curves = loss_curves(*make_cell([0.5], log=[log([1], [0.7])]))
    assert all(np.isnan(part).all() for part in curves.summary())


def test_no_log_at_all(make_cell) -> None:
    curves = loss_curves(*make_cell([0.5, 0.7], log=[None, log([], [])]))
    assert (curves.steps, curves.unlogged) == ((), 2)
    assert value_range([curves.losses]) is None
    assert value_range([]) is None
    assert [part.shape for part in curves.summary()] == [(0,)] * 3
