from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from evenkeel.report._component_maps import BINS, ComponentMap, component_maps
from evenkeel.report._map_figures import colour_span, draw_map, sparse
from evenkeel.report._results import Cell, cells
from evenkeel.study import StudyFolder, open_study


def norm_map(cell: Cell, folder: StudyFolder) -> ComponentMap:
    ((found, *_),) = component_maps([cell], folder)
    assert found.measure == "norm"
    return found


def norms(*rows: Any, **more: list[float]) -> pa.Table:
    names = ("step", "component", "layer", "role", "kind", "norm")
    types = (pa.int32(), pa.string(), pa.int32(), pa.string(), pa.string(), pa.float32())
    schema = pa.schema(list(zip(names, types, strict=True)))
    table = pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], schema=schema)
    for name, values in more.items():
        table = table.append_column(name, pa.array(values, pa.float32()))
    return table


def test_norms_are_averaged_in_logarithms_for_each_outcome(make_cell) -> None:
    good = norms(
        (0, "layer.0.query.weight", 0, "query", "weight", 1e-2),
        (0, "layer.0.query.bias", 0, "query", "bias", 1e-9),
        (9, "layer.0.query.weight", 0, "query", "weight", 1e-4),
        (9, "head.weight", None, "head", "weight", 1.0),
    )
    better = norms((0, "layer.0.query.weight", 0, "query", "weight", 1e-1))
    bad = norms((0, "layer.0.query.weight", 0, "query", "weight", 1e-6))
    found = norm_map(*make_cell([0.7, 0.8, 0.5, 0.9], telemetry=[good, better, bad, None]))
    assert (found.rows, found.roles) == (("layer 0", "head"), ("query", "head"))
    nan = float("nan")
    np.testing.assert_allclose(found.successful[0], [[(-3 - 1) / 2, nan], [nan, 0]], atol=1e-6)
    np.testing.assert_allclose(found.failed[0], [[-6, nan], [nan, nan]], atol=1e-6)
    assert (found.n_failed, found.n_successful, found.unrecorded) == (1, 2, 1)


def test_norms_that_are_no_number_are_left_out_and_zero_is_very_small(make_cell) -> None:
    table = norms(
        (0, "layer.0.key.weight", 0, "key", "weight", math.inf),
        (9, "layer.0.key.weight", 0, "key", "weight", 1e-2),
        (0, "layer.0.value.weight", 0, "value", "weight", 0.0),
        (0, "layer.0.norm.weight", 0, "norm", "weight", math.nan),
    )
    found = norm_map(*make_cell([0.7], telemetry=[table]))
    assert found.roles == ("key", "value")
    np.testing.assert_allclose(found.successful[0], [[-2, -12]], atol=1e-6)


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
    found = norm_map(*make_cell([0.7], telemetry=[table]))
    assert found.rows == ("embeddings", "layer 9", "layer 10", "head")
    assert found.roles == ("embedding", "query", "pooler", "head", "other")


def test_encoder_and_decoder_are_stacked(make_cell) -> None:
    parts = [("decoder.layer.0.query.weight", 0), ("encoder.layer.1.query.weight", 1), ("encoder.embedding.word", None)]
    parts += [("decoder.embedding.position", None), ("decoder.norm.weight", None), ("embedding.word", None)]
    table = norms(*((0, path, layer, "query", "weight", 0.1) for path, layer in parts))
    found = norm_map(*make_cell([0.7], telemetry=[table]))
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
        StudyFolder(tmp_path).write_run(run.id, {"telemetry": norms((*place, "weight", 0.1))})
    maps = [of_method[0] for of_method in component_maps(cells(plan, runs), StudyFolder(tmp_path))]
    assert {(one.rows, one.roles) for one in maps} == {(("layer 0", "layer 1"), ("query", "key"))}
    held = [np.argwhere(np.isfinite(one.successful[0])).tolist() for one in maps]
    assert held == [[[0, 0]], [[1, 1]], []]


def test_a_stored_study_is_read_back(make_study) -> None:
    plan, runs, folder = open_study(make_study({"full": [0.7, 0.5]}))
    found = norm_map(cells(plan, runs)[0], folder)
    assert found.rows == ("embeddings", "layer 0", "layer 1", "layer 2", "layer 3", "head")
    query = found.roles.index("query")
    np.testing.assert_allclose(found.successful[0, 1:5, query], [-2, -1.9, -1.8, -1.7], atol=0.15)
    np.testing.assert_allclose(found.failed[0, 1:5, query], [-5.2, -4.4, -3.6, -2.8], atol=0.15)


def test_parts_of_training_are_told_apart(make_cell) -> None:
    rows = [(step, "layer.0.query.weight", 0, "query", "weight", 10.0 ** -(step // 10)) for step in range(1, 101)]
    found = norm_map(*make_cell([0.7], telemetry=[norms(*rows)]))
    assert found.successful.shape == (1 + BINS, 1, 1)
    parts = found.successful[1:, 0, 0]
    assert (np.diff(parts) < 0).all()
    assert found.successful[0, 0, 0] == pytest.approx(np.mean([-(step // 10) for step in range(1, 101)]), abs=1e-6)


def test_every_measure_is_what_its_columns_say(make_cell) -> None:
    rows = [(step, "layer.0.query.weight", 0, "query", "weight", 0.1) for step in range(1, 101)]
    covered = [1 - math.exp(-step / 20) for step in range(1, 101)]
    table = norms(
        *rows, coefficient=[0.5, 1.0] * 50, update_coefficient=[0.5, 1.0, 1.0, 1.0] * 25,
        weight_norm=[2.0] * 100, update_norm=[0.002] * 100,
        rms_change=covered, cosine_distance=[1e-4] * 100,
    )  # fmt: skip
    (of_method,) = component_maps([(cell := make_cell([0.7], telemetry=[table]))[0]], cell[1])
    found = {one.measure: one.successful[0, 0, 0] for one in of_method}
    assert found["clipped"] == 0.5
    assert found["limited"] == 0.25
    assert found["ratio"] == pytest.approx(-3, abs=1e-5)
    assert found["turned"] == pytest.approx(-4, abs=1e-5)
    assert found["drift"] == pytest.approx(np.mean(np.log10(covered)), abs=1e-4)
    half = -20 * math.log(1 - covered[-1] / 2) / 100
    assert found["half_time"] == pytest.approx(half, abs=0.01)


def test_what_no_run_recorded_is_no_choice(make_cell) -> None:
    cell, folder = make_cell([0.7], telemetry=[norms((1, "head.weight", None, "head", "weight", 0.1))])
    assert [one.measure for one in component_maps([cell], folder)[0]] == ["norm"]


def test_a_table_that_is_cut_off_counts_as_missing(make_cell) -> None:
    table = norms((1, "head.weight", None, "head", "weight", 0.1))
    cell, folder = make_cell([0.7, 0.8], telemetry=[table, table])
    path = folder.path / "runs" / cell.runs[1].id / "telemetry.parquet"
    path.write_bytes(path.read_bytes()[:100])
    assert norm_map(cell, folder).unrecorded == 1


def test_maps_of_failed_and_successful_runs_share_one_scale() -> None:
    grid = np.array([[[-4.0, np.nan], [np.nan, -6.0]]])
    one = ComponentMap(
        method="full", measure="norm", rows=("embeddings", "layer 0"), roles=("embedding", "<b>"), failed=grid,
        successful=grid + 3, n_failed=1, n_successful=2, unrecorded=0,
    )  # fmt: skip
    span = colour_span([one])
    assert span == (-6, -1)
    for failed, values in ((True, [[-4, None], [None, -6]]), (False, [[-1, None], [None, -3]])):
        (heat,) = draw_map(one, failed=failed, span=span, unit="log10").data
        assert (heat.zmin, heat.zmax) == span
        assert [list(line) for line in heat.z] == values
        assert tuple(heat.x) == ("embedding", "&lt;b&gt;")
    assert colour_span([]) == (0, 1)
    assert sparse(np.array([[[0.12345, np.inf]]])) == [[[0.123, None]]]
