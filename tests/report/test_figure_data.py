from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from evenkeel.report._figure_data import NormMap, loss_curves, loss_range, norm_maps, strip
from evenkeel.report._results import Cell, cells
from evenkeel.study import StudyFolder, open_study


@pytest.fixture
def make_cell(make_runs, tmp_path):
    """Make a cell whose runs left the tables given: one, or None, for each fate."""

    def make(fates, **tables):
        plan, runs = make_runs({"full": fates})
        folder = StudyFolder(tmp_path)
        for name, of_runs in tables.items():
            for run, table in zip(runs, of_runs, strict=True):
                if table is not None:
                    folder.write_run(run.id, {name: table})
        return cells(plan, runs)[0], folder

    return make


def norm_map(cell: Cell, folder: StudyFolder) -> NormMap:
    (found,) = norm_maps([cell], folder)
    return found


def log(steps, losses) -> pa.Table:
    return pa.table({"step": pa.array(steps, pa.int32()), "loss": pa.array(losses, pa.float64())})


def norms(*rows) -> pa.Table:
    names = ("step", "component", "layer", "role", "kind", "norm")
    types = (pa.int32(), pa.string(), pa.int32(), pa.string(), pa.string(), pa.float32())
    schema = pa.schema(list(zip(names, types, strict=True)))
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], schema=schema)


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
    assert loss_range([curves]) == (0.1, 0.9)


def test_losses_of_failed_runs_alone_have_no_median(make_cell) -> None:
    curves = loss_curves(*make_cell([0.5], log=[log([1], [0.7])]))
    assert all(np.isnan(part).all() for part in curves.summary())


def test_no_log_at_all(make_cell) -> None:
    curves = loss_curves(*make_cell([0.5, 0.7], log=[None, log([], [])]))
    assert (curves.steps, curves.unlogged) == ((), 2)
    assert loss_range([curves]) is None
    assert loss_range([]) is None
    assert [part.shape for part in curves.summary()] == [(0,)] * 3


def test_norms_are_averaged_in_logarithms_for_each_outcome(make_cell) -> None:
    good = norms(
        (0, "layer.0.query.weight", 0, "query", "weight", 1e-2),
        (0, "layer.0.query.bias", 0, "query", "bias", 1e-9),
        (9, "layer.0.query.weight", 0, "query", "weight", 1e-4),
        (9, "head.weight", None, "head", "weight", 1.0),
    )
    better = norms((0, "layer.0.query.weight", 0, "query", "weight", 1e-1))
    bad = norms((0, "layer.0.query.weight", 0, "query", "weight", 1e-6))
    found = norm_map(*make_cell([0.7, 0.8, 0.5, 0.9], norms=[good, better, bad, None]))
    assert (found.rows, found.roles) == (("layer 0", "head"), ("query", "head"))
    nan = float("nan")
    np.testing.assert_allclose(found.successful, [[(-3 - 1) / 2, nan], [nan, 0]], atol=1e-6)
    np.testing.assert_allclose(found.failed, [[-6, nan], [nan, nan]], atol=1e-6)
    assert (found.n_failed, found.n_successful, found.unrecorded) == (1, 2, 1)


def test_norms_that_are_no_number_are_left_out_and_zero_is_very_small(make_cell) -> None:
    table = norms(
        (0, "layer.0.key.weight", 0, "key", "weight", math.inf),
        (9, "layer.0.key.weight", 0, "key", "weight", 1e-2),
        (0, "layer.0.value.weight", 0, "value", "weight", 0.0),
        (0, "layer.0.norm.weight", 0, "norm", "weight", math.nan),
    )
    found = norm_map(*make_cell([0.7], norms=[table]))
    assert found.roles == ("key", "value")
    np.testing.assert_allclose(found.successful, [[-2, -12]], atol=1e-6)


def test_rows_rise_from_the_embeddings_to_the_head(make_cell) -> None:
    paths = {
        "head.weight": (None, "head"),
        "layer.10.query.weight": (10, "query"),
        "layer.9.query.weight": (9, "query"),
        "embedding.word": (None, "embedding"),
        "pooler.weight": (None, "pooler"),
        "something.else": (None, None),
    }
    table = norms(*((0, path, layer, role, "weight", 0.1) for path, (layer, role) in paths.items()))
    found = norm_map(*make_cell([0.7], norms=[table]))
    assert found.rows == ("embeddings", "layer 9", "layer 10", "head")
    assert found.roles == ("embedding", "query", "pooler", "head", "other")


def test_encoder_and_decoder_are_stacked(make_cell) -> None:
    parts = [("decoder.layer.0.query.weight", 0), ("encoder.layer.1.query.weight", 1), ("encoder.embedding.word", None)]
    parts += [("decoder.embedding.position", None), ("decoder.norm.weight", None), ("embedding.word", None)]
    table = norms(*((0, path, layer, "query", "weight", 0.1) for path, layer in parts))
    found = norm_map(*make_cell([0.7], norms=[table]))
    assert found.rows == (
        "embeddings",
        "encoder embeddings",
        "encoder layer 1",
        "decoder embeddings",
        "decoder layer 0",
        "decoder head",
    )


def test_methods_share_rows_and_roles(make_runs, tmp_path) -> None:
    plan, runs = make_runs({"a": [0.7], "b": [0.7], "c": ["queued"]})
    places = [(0, "layer.0.query.weight", 0, "query"), (0, "layer.1.key.weight", 1, "key")]
    for run, place in zip(runs, places, strict=False):
        StudyFolder(tmp_path).write_run(run.id, {"norms": norms((*place, "weight", 0.1))})
    maps = norm_maps(cells(plan, runs), StudyFolder(tmp_path))
    assert {(one.rows, one.roles) for one in maps} == {(("layer 0", "layer 1"), ("query", "key"))}
    held = [np.argwhere(np.isfinite(one.successful)).tolist() for one in maps]
    assert held == [[[0, 0]], [[1, 1]], []]


def test_a_stored_study_is_read_back(make_study) -> None:
    plan, runs, folder = open_study(make_study({"full": [0.7, 0.5]}))
    found = norm_map(cells(plan, runs)[0], folder)
    assert found.rows == ("embeddings", "layer 0", "layer 1", "layer 2", "layer 3", "head")
    query = found.roles.index("query")
    np.testing.assert_allclose(found.successful[1:5, query], [-2, -1.9, -1.8, -1.7], atol=0.15)
    np.testing.assert_allclose(found.failed[1:5, query], [-5.2, -4.4, -3.6, -2.8], atol=0.15)
