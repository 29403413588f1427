from __future__ import annotations

import pyarrow as pa
import pytest
from tests import _models

from evenkeel import clip_grad_norm_, components
from evenkeel.errors import MeasureError
from evenkeel.measure import GradientNorms

COLUMNS = {
    "step": pa.int32(), "component": pa.string(), "layer": pa.int32(), "role": pa.string(), "kind": pa.string(),
    "norm": pa.float32(),
}  # fmt: skip


def test_a_record_is_one_row_for_each_component() -> None:
    model = _models.bert()
    _models.backward(model)
    parts = components(model)
    norms = GradientNorms(every=1)
    norms.record(3, parts)
    seen = clip_grad_norm_(parts, 0.01).norms.tolist()
    norms.record(4, parts)
    table = norms.table()
    assert dict(zip(table.schema.names, table.schema.types, strict=True)) == COLUMNS
    assert table["component"].to_pylist() == [part.path for part in parts] * 2
    assert table["layer"].to_pylist() == [part.layer for part in parts] * 2
    assert table["role"].to_pylist() == [part.role for part in parts] * 2
    assert table["kind"].to_pylist() == [part.kind for part in parts] * 2
    assert table["step"].to_pylist() == [3] * len(parts) + [4] * len(parts)
    assert table["norm"].to_pylist()[: len(parts)] == seen  # as it was before clipping
    assert max(table["norm"].to_pylist()[len(parts) :]) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(("every", "steps"), [(1, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 3, 6]), (10, [0])])
def test_every_such_step_is_recorded_the_first_among_them(every: int, steps: list[int]) -> None:
    model = _models.bert()
    _models.backward(model)
    norms = GradientNorms(every=every)
    for step in range(7):
        norms.record(step, components(model))
    assert sorted(set(norms.table()["step"].to_pylist())) == steps


def test_components_may_change_between_records() -> None:
    model = _models.bert()
    _models.backward(model)
    norms = GradientNorms(every=1)
    norms.record(0, components(model))
    norms.record(1, components(model).select("head"))
    assert norms.table().num_rows == len(components(model)) + 2


def test_an_empty_table_has_the_columns_too() -> None:
    assert GradientNorms().table().num_rows == 0
    assert GradientNorms().table().schema.names == list(COLUMNS)


@pytest.mark.parametrize("every", [0, -1])
def test_recording_never_is_refused(every: int) -> None:
    with pytest.raises(MeasureError, match=f"every must be at least 1, but got {every}"):
        GradientNorms(every=every)
