"""Telemetry against a loop over tensors in float64 that is written out by hand."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from tests import _models
from tests._tiers import few
from tests.clipping import _layouts
from torch import Tensor, nn

from evenkeel import Components, clip_grad_norm_, components
from evenkeel.errors import MeasureError
from evenkeel.measure import TELEMETRY, References, Telemetry
from evenkeel.measure import _telemetry as inner
from evenkeel.optim import ClippedAdamW, latest_update
from evenkeel.partition import regroup

MAX_NORM = 0.02
Weights = dict[str, Tensor]
Row = dict[str, Any]


def weights_of(parts: Components) -> Weights:
    """Every component's entries in one float64 vector."""
    return {
        part.path: torch.cat([piece.of(piece.tensor().detach())[0].double().flatten() for piece in part.pieces])
        for part in parts
    }


def by_hand(before: Weights, after: Weights, initial: Weights, prefix: str = "") -> dict[str, Row]:
    """What a row says of drift, from the weights alone."""
    found: dict[str, Row] = {}
    for path, now in after.items():
        then = initial[path]
        product = float(torch.dot(now, then) / (now.norm() * then.norm())) if now.norm() * then.norm() else math.nan
        found[path] = {
            "weight_norm": float(before[path].norm()),
            "update_norm": float((now - before[path]).norm()),
            f"{prefix}rms_change": float((now - then).square().mean().sqrt()),
            f"{prefix}cosine_distance": None if math.isnan(product) else 1 - product,
        }
    return found


def learn(
    model: nn.Module, telemetry: Telemetry, steps: int, *, clip: Callable[[Components], Any] | None = None
) -> dict[int, tuple[Weights, Weights, dict[str, float]]]:
    """Train a few steps; return the weights around each of them, and gradient norms."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    seen = {}
    for step in range(1, steps + 1):
        parts = components(model)
        telemetry.look(parts)
        optimizer.zero_grad()
        _models.backward(model)  # type: ignore[arg-type]
        norms = {part.path: float(torch.cat([g.flatten() for g in part.gradients()]).norm()) for part in parts}
        before = weights_of(parts)
        if telemetry.wants(step - 1):
            telemetry.before(step)
        result = None if clip is None else clip(parts)
        optimizer.step()
        if telemetry.pending:
            telemetry.after(result)
        seen[step] = before, weights_of(parts), norms
    return seen


@pytest.mark.parametrize("name", few(_models.ALL, {"bert", "llama"}))
def test_every_number_is_that_of_a_loop(name: str) -> None:
    model = _models.ALL[name]()
    parts, initial = components(model), weights_of(components(model))
    telemetry = Telemetry(every=2)
    seen = learn(model, telemetry, 5, clip=lambda parts: clip_grad_norm_(parts, MAX_NORM))
    rows = telemetry.table().to_pylist()
    assert telemetry.table().schema.equals(TELEMETRY)
    assert [(row["step"], row["component"]) for row in rows] == [(s, part.path) for s in (1, 3, 5) for part in parts]
    about = {part.path: (part.layer, part.role, part.kind, part.size) for part in parts}
    for row in rows:
        before, after, norms = seen[row["step"]]
        path = row["component"]
        assert (row["layer"], row["role"], row["kind"], row["size"]) == about[path]
        assert row["phase"] == 0
        assert row["norm"] == pytest.approx(norms[path], rel=1e-5, abs=1e-9)
        assert row["coefficient"] == pytest.approx(min(1, MAX_NORM / (norms[path] + 1e-6)), rel=1e-5)
        expected = by_hand(before, after, initial)[path]
        for column, value in expected.items():
            assert row[column] == (None if value is None else pytest.approx(value, rel=1e-3, abs=1e-9)), column
            if column.endswith(("rms_change", "cosine_distance")):
                assert row[f"phase_{column}"] == row[column]


def test_the_cosine_keeps_its_digits_where_weights_hardly_move() -> None:
    model = nn.Linear(300, 100, bias=False)
    parts, initial = components(model), weights_of(components(model))
    telemetry = Telemetry(every=1)
    telemetry.look(parts)
    model.weight.grad = torch.ones_like(model.weight)
    telemetry.before(1)
    torch.manual_seed(0)
    with torch.no_grad():
        model.weight.add_(1e-6 * torch.randn_like(model.weight))
    telemetry.after()
    row = telemetry.table().to_pylist()[0]
    now, then = weights_of(parts)["weight"], initial["weight"]
    expected = float((now / now.norm() - then / then.norm()).square().sum() / 2)  # of unit vectors, in float64
    assert expected < 1e-9  # less than float32 can tell from 1
    assert row["cosine_distance"] == pytest.approx(expected, rel=1e-3)


def test_weights_that_are_zero_have_no_angle() -> None:
    model = nn.Linear(2, 1)
    nn.init.zeros_(model.bias)
    telemetry = Telemetry(every=1)
    telemetry.look(components(model))
    model(torch.ones(1, 2)).sum().backward()
    telemetry.before(1)
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    telemetry.after()
    rows = {row["component"]: row for row in telemetry.table().to_pylist()}
    assert rows["bias"]["cosine_distance"] is None
    assert rows["bias"]["rms_change"] == 1.0
    assert rows["weight"]["cosine_distance"] is not None


# --- phases, and what is frozen


def test_a_phase_has_its_own_beginning_and_frozen_components_have_no_rows() -> None:
    model = nn.ModuleDict({"low": nn.Linear(2, 2), "high": nn.Linear(2, 2)})
    telemetry, optimizer = Telemetry(every=1), torch.optim.SGD(model.parameters(), lr=0.1)
    starts: dict[int, Weights] = {}
    everything = components(model)
    for step, phase in ((1, 0), (2, 0), (3, 1), (4, 1)):
        model["low"].requires_grad_(phase == 1)
        parts = components(model)
        starts.setdefault(phase, weights_of(everything))
        telemetry.look(parts, phase)
        optimizer.zero_grad()
        model["high"](model["low"](torch.ones(1, 2))).square().sum().backward()
        telemetry.before(step)
        optimizer.step()
        telemetry.after()
        now = weights_of(everything)
        rows = [row for row in telemetry.table().to_pylist() if row["step"] == step]
        assert [row["component"] for row in rows] == [part.path for part in parts]
        for row in rows:
            path = row["component"]
            for prefix, then in (("", starts[0]), ("phase_", starts[phase])):
                expected = float((now[path] - then[path]).square().mean().sqrt())
                assert row[f"{prefix}rms_change"] == pytest.approx(expected, rel=1e-5)
            assert row["phase"] == phase


def test_copies_are_shared_where_they_are_the_same() -> None:
    model = nn.ModuleDict({"low": nn.Linear(2, 2), "high": nn.Linear(2, 2)})
    references = References()
    model["low"].requires_grad_(False)
    references.look(components(model), 0)
    assert sorted(references._initial) == ["high.bias", "high.weight"]  # what is frozen needs no copy yet
    model["low"].requires_grad_(True)
    references.look(components(model), 1)
    shared = {name for name, views in references._of_phase.items() if views is references._initial[name]}
    assert shared == {"low.weight", "low.bias"}
    assert set(references.state_dict()) == {"phase", "0.high.weight", "0.high.bias"}


def test_references_go_on_where_others_were() -> None:
    model = nn.ModuleDict({"low": nn.Linear(2, 2), "high": nn.Linear(2, 2)})
    initial, whole = References(), References()
    initial.look(components(model), 0)
    whole.look(components(model), 0)

    def move() -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.5)

    move()
    whole.look(components(model), 1)
    move()
    parts = components(model)
    again = References(initial._initial)
    again.load_state_dict(whole.state_dict())
    again.look(parts, 1)
    whole.look(parts, 1)
    for mine, theirs in zip(again.rows(parts), whole.rows(parts), strict=True):
        assert torch.equal(mine, theirs)
    assert not torch.equal(whole.rows(parts)[1], whole.rows(parts)[3])


# --- what nobody tells


def test_what_is_not_known_is_null() -> None:
    model = _models.bert()
    telemetry = Telemetry(every=1)
    telemetry.forget_references()
    learn(model, telemetry, 1)
    table = telemetry.table()
    unknown = {name for name in table.column_names if table[name].null_count == table.num_rows}
    drift = {f"{prefix}{name}" for prefix in ("", "phase_") for name in ("rms_change", "cosine_distance")}
    assert unknown == {"coefficient", "update_coefficient", *drift}


def test_gradients_that_are_gone_are_told_by_what_clipped_them() -> None:
    model = _models.bert()
    parts = components(model)
    _models.backward(model)
    result = clip_grad_norm_(parts, MAX_NORM)
    telemetry = Telemetry(every=1)
    for told in (None, result):
        telemetry.look(parts)
        telemetry.before(1, graded=False)
        telemetry.after(told)
    norms = telemetry.table()["norm"].to_pylist()
    assert norms == [None] * len(parts) + result.norms.tolist()


@pytest.mark.parametrize("by", ["layer", "role", "global", lambda part: (part.layer, part.kind)])
@pytest.mark.parametrize("name", ["gpt2", "phi3", "llama"])  # cut parameters are whole again in a coarse component
def test_coefficients_are_those_of_the_coarse_component(by: Any, name: str) -> None:
    model = _layouts.build(name)
    _layouts.backward(model)
    parts = components(model)
    coarse = regroup(parts, by)
    telemetry = Telemetry(every=1)
    telemetry.look(parts)
    telemetry.before(1)
    before = [float(torch.cat([grad.flatten() for grad in part.gradients()]).norm()) for part in parts]
    telemetry.after(clip_grad_norm_(coarse, 0.05), coarse)
    after = [float(torch.cat([grad.flatten() for grad in part.gradients()]).norm()) for part in parts]
    rows = telemetry.table().to_pylist()
    assert [row["coefficient"] * norm for row, norm in zip(rows, before, strict=True)] == pytest.approx(after, rel=1e-5)
    assert min(row["coefficient"] for row in rows) < 1


def test_a_component_that_was_not_clipped_has_no_coefficient() -> None:
    model = _models.bert()
    _models.backward(model)
    parts = components(model)
    telemetry = Telemetry(every=1)
    telemetry.look(parts)
    telemetry.before(1)
    some = parts.select("query")
    telemetry.after(clip_grad_norm_(some, 1e-6), some)
    for row in telemetry.table().to_pylist():
        assert (row["coefficient"] is None) == (row["role"] != "query")


@pytest.mark.parametrize("by", ["tensor", "layer"])
def test_how_steps_were_limited_is_told(by: Any) -> None:
    model = _models.bert()
    parts = components(model)
    coarse = regroup(parts, by)
    optimizer = ClippedAdamW(coarse, lr=1e-2, max_norm=math.inf, max_update=0.01)
    telemetry = Telemetry(every=1)
    telemetry.look(parts)
    _models.backward(model)
    telemetry.before(1)
    optimizer.step()
    telemetry.after(limited=latest_update(optimizer))
    assert optimizer.last_update is not None
    factors = dict(zip(optimizer.last_update.names, optimizer.last_update.coefficients.tolist(), strict=True))
    for part, row in zip(parts, telemetry.table().to_pylist(), strict=True):
        owner = next(name for name, one in zip(factors, coarse, strict=True) if part.pieces[0] in one.pieces)
        assert row["update_coefficient"] == pytest.approx(factors[owner], rel=1e-6)
        assert row["coefficient"] is None
        far = 1.001 * 0.01 * (row["weight_norm"] + 1e-3 * math.sqrt(row["size"]))
        assert by == "layer" or row["update_norm"] <= far + 0.01 * 0.01 * row["weight_norm"]  # which decays too
    assert min(factors.values()) < 0.5


def test_a_table_from_before_there_was_a_column_is_gone_on_with() -> None:
    model = _models.bert()
    telemetry = Telemetry(every=1)
    learn(model, telemetry, 1)
    earlier = telemetry.table().drop_columns(["update_coefficient"])
    again = Telemetry(every=1)
    again.continue_from(earlier)
    learn(model, again, 1)
    table = again.table()
    assert table.schema.equals(TELEMETRY)
    assert table.num_rows == 2 * earlier.num_rows
    assert table.slice(0, earlier.num_rows).drop_columns(["update_coefficient"]).equals(earlier)
    assert table["update_coefficient"].null_count == table.num_rows


def test_numbers_that_are_none_stay_what_they_are() -> None:
    model = nn.Linear(1, 1)
    telemetry = Telemetry(every=1)
    parts = components(model)
    telemetry.look(parts)
    model(torch.ones(1, 1)).sum().backward()
    model.weight.grad = torch.tensor([[math.nan]])
    telemetry.before(1)
    result = clip_grad_norm_(parts, 1.0)
    torch.optim.SGD(model.parameters(), lr=1e30).step()
    telemetry.after(result)
    weight, bias = telemetry.table().to_pylist()
    columns = ("norm", "coefficient", "update_norm", "rms_change")
    assert all(math.isnan(weight[name]) for name in columns)
    assert bias["update_norm"] == pytest.approx(1e30)


def test_a_skipped_step_changes_nothing() -> None:
    model = _models.bert()
    _models.backward(model)
    telemetry = Telemetry(every=1)
    telemetry.look(components(model))
    telemetry.before(1)
    telemetry.after()
    table = telemetry.table()
    assert set(table["update_norm"].to_pylist()) == {0.0}
    assert set(table["rms_change"].to_pylist()) == {0.0}
    assert set(table["cosine_distance"].to_pylist()) <= {0.0, None}


# --- blocks


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tables = []
    for block, path in ((64, None), (2, None), (3, tmp_path / "run" / "telemetry.parquet")):
        monkeypatch.setattr(inner, "_BLOCK", block)
        telemetry = Telemetry(every=1, path=path)
        learn(_models.bert(), telemetry, 7)
        tables.append(telemetry.table())
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["telemetry.parquet"]
    assert pa.parquet.read_metadata(tmp_path / "run" / "telemetry.parquet").num_row_groups == 3


def test_an_earlier_part_goes_before() -> None:
    telemetry = Telemetry(every=1)
    learn(_models.bert(), telemetry, 4)
    whole = telemetry.table()
    again = Telemetry(every=1)
    earlier = whole.slice(0, 2 * len(components(_models.bert())))
    again.continue_from(earlier)
    again.continue_from(whole.slice(earlier.num_rows))
    assert again.table().equals(whole)


@pytest.mark.slow
def test_a_killed_process_leaves_no_file_in_its_place(tmp_path: Path) -> None:
    code = (
        "import os, torch; from evenkeel import components; from evenkeel.measure import Telemetry, _telemetry\n"
        "_telemetry._BLOCK = 1\n"
        f"telemetry = Telemetry(every=1, path={str(tmp_path / 'telemetry.parquet')!r})\n"
        "model = torch.nn.Linear(1, 1); model(torch.ones(1, 1)).sum().backward()\n"
        "telemetry.look(components(model)); telemetry.before(1); telemetry.after()\n"
        "os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert [file.name for file in tmp_path.iterdir()] == ["telemetry.parquet.writing"]


def test_an_empty_table_has_the_columns_too(tmp_path: Path) -> None:
    assert Telemetry().table().schema.equals(TELEMETRY)
    empty = Telemetry(path=tmp_path / "telemetry.parquet").table()
    assert empty.num_rows == 0
    assert empty.schema.names == TELEMETRY.names


def test_a_closed_file_takes_no_more(tmp_path: Path) -> None:
    telemetry = Telemetry(every=1, path=tmp_path / "telemetry.parquet")
    learn(_models.bert(), telemetry, 1)
    telemetry.close()
    telemetry.close()  # does nothing
    learn(_models.bert(), telemetry, 1)
    with pytest.raises(MeasureError, match="was closed and cannot take more rows"):
        telemetry.table()


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    telemetry = Telemetry(every=1, path=tmp_path / "file" / "telemetry.parquet")
    learn(_models.bert(), telemetry, 1)
    with pytest.raises(MeasureError, match="telemetry cannot be written to .*give another path"):
        telemetry.close()


# --- use


@pytest.mark.parametrize(("every", "steps"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [1, 4, 7]), (10, [1])])
def test_every_such_step_is_recorded_the_first_among_them(every: int, steps: list[int]) -> None:
    telemetry = Telemetry(every=every)
    learn(_models.bert(), telemetry, 7)
    assert sorted(set(telemetry.table()["step"].to_pylist())) == steps


def test_recording_changes_nothing() -> None:
    ours, theirs = _models.bert(), _models.bert()
    learn(ours, Telemetry(every=1), 3)
    learn(theirs, Telemetry(every=100), 3)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "10"])
def test_an_interval_that_is_none_is_refused(every: Any) -> None:
    with pytest.raises(MeasureError, match=f"every must be a whole number, at least 1, but got {every!r}"):
        Telemetry(every=every)


def test_calls_out_of_order_are_refused() -> None:
    telemetry = Telemetry(every=1)
    with pytest.raises(MeasureError, match=r"look\(\) was not called"):
        telemetry.before(1)
    with pytest.raises(MeasureError, match=r"before\(\) was not called"):
        telemetry.after()


@pytest.mark.parametrize("by", ["tensor", "layer"])
def test_recording_looks_at_no_value_until_the_table_is_asked_for(by: Any) -> None:
    """Meta tensors have a device and no values: whatever would wait for a device fails on them."""
    with torch.device("meta"):
        model = _models.bert()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    parts = components(model)
    coarse = regroup(parts, by)
    telemetry = Telemetry(every=1)
    for step, phase in ((1, 0), (2, 1)):
        telemetry.look(parts, phase)
        telemetry.before(step)
        telemetry.after(clip_grad_norm_(coarse, MAX_NORM), coarse)
    with pytest.raises(NotImplementedError):
        telemetry.table()
