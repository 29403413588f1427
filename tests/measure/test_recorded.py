from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from tests import _models
from tests.measure.test_telemetry import learn

from evenkeel import components
from evenkeel.measure import TELEMETRY, Recorded, Telemetry


@pytest.fixture(scope="module")
def table() -> pa.Table:
    telemetry = Telemetry(every=2)
    learn(_models.bert(), telemetry, 5)
    return telemetry.table()


def test_a_table_becomes_arrays(table: pa.Table) -> None:
    found, parts = Recorded.of(table), components(_models.bert())
    assert found.steps.tolist() == [1, 3, 5]
    assert found.components == tuple(part.path for part in parts)
    assert found.sizes.tolist() == [part.size for part in parts]
    assert found.layers == tuple(part.layer for part in parts)
    assert found.roles == tuple(part.role for part in parts)
    expected = np.array(table["norm"].to_pylist()).reshape(3, len(parts))
    np.testing.assert_array_equal(found.column("norm"), expected)


def test_the_order_of_rows_does_not_count(table: pa.Table) -> None:
    order = np.random.default_rng(0).permutation(table.num_rows)
    one, other = Recorded.of(table), Recorded.of(table.take(pa.array(order)))
    places = [other.components.index(name) for name in one.components]
    np.testing.assert_array_equal(one.column("norm"), other.column("norm")[:, places])


def test_what_is_absent_or_null_is_what_one_says(table: pa.Table) -> None:
    found = Recorded.of(table.slice(0, table.num_rows - 3))
    values = found.column("norm")
    assert np.isnan(values[-1, -3:]).all()
    assert np.isfinite(values[:-1]).all()
    assert found.column("norm", absent=0.0)[-1, -3:].tolist() == [0.0] * 3
    assert np.isnan(found.column("coefficient")).all()
    assert (found.column("coefficient", absent=1.0) == 1).all()


def test_layers_are_the_root_of_the_sum_of_squares(table: pa.Table) -> None:
    found = Recorded.of(table)
    norms, own = found.column("norm"), found.layer_norms()
    assert own.shape == (3, 2)
    for layer in (0, 1):
        chosen = [place for place, number in enumerate(found.layers) if number == layer]
        np.testing.assert_allclose(own[:, layer], np.sqrt((norms[:, chosen] ** 2).sum(axis=1)))
    head = [place for place, role in enumerate(found.roles) if role == "head"]
    np.testing.assert_allclose(found.role_norms("head"), np.sqrt((norms[:, head] ** 2).sum(axis=1)))
    assert found.role_norms("expert_in") is None


def test_stacks_have_layers_of_their_own() -> None:
    rows = [
        {"step": 1, "component": f"{stack}.layer.0.query.weight", "layer": 0, "role": "query", "size": 1, "norm": norm}
        for stack, norm in (("encoder", 3.0), ("decoder", math.nan))
    ]
    own = Recorded.of(pa.Table.from_pylist(rows)).layer_norms()
    np.testing.assert_array_equal(own, [[3.0, math.nan]])


def test_nothing_recorded_is_nothing() -> None:
    found = Recorded.of(TELEMETRY.empty_table())
    assert found.column("norm").shape == (0, 0)
    assert found.layer_norms().shape == (0, 0)
    assert found.role_norms("head") is None
