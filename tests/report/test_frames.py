from __future__ import annotations

import pytest

import evenkeel as ek
from evenkeel.errors import StoreError

TABLES = ("log", "telemetry", "course", "predictions")


def test_frames_hold_everything(make_study) -> None:
    study = ek.load_study(make_study({"full": [0.7, 0.5, "queued"], "b": [0.6, "diverged", "error"]}, tables=TABLES))
    runs = study.runs
    assert len(runs) == 6
    assert runs.groupby("method").score.count().to_dict() == {"b": 1, "full": 2}
    assert runs.loc[runs.status == "diverged", "failed"].tolist() == [True]
    assert set(runs.columns) >= {"task", "model", "recipe", "seed", "metric", "majority", "wall_seconds", "attempts"}
    assert set(study.telemetry.run) == set(runs.index[runs.status.isin(["done", "diverged"])])
    assert {"run", "method", "seed", "step", "component", "norm", "coefficient"} <= set(study.telemetry.columns)
    assert len(study.predictions) == 4 * 40
    assert study.log.groupby("run").step.max().max() == 300
    assert len(study.course) == 4 * 10


def test_figures_are_plotlys(make_study) -> None:
    import plotly.graph_objects as go

    study = ek.load_study(make_study({"full": [0.7, 0.5], "b": [0.6, 0.6]}))
    assert all(isinstance(figure, go.Figure) for figure in study.figures.values())
    assert "rte, tiny: scores" in study.figures
    assert "rte, tiny: loss: full: 1 successful, 1 failed" in study.figures
    assert [one.method for one in study.verdicts] == ["b"]


def test_a_study_without_results_has_empty_frames(make_study) -> None:
    study = ek.load_study(make_study({"full": ["queued"]}))
    assert len(study.runs) == 1
    assert study.telemetry.empty
    assert study.predictions.empty


def test_a_table_that_is_cut_off_is_left_out(make_study) -> None:
    path = make_study({"full": [0.7, 0.6]})
    (first, second) = sorted((path / "runs").iterdir())
    (first / "telemetry.parquet").write_bytes(b"PAR1")
    assert set(ek.load_study(path).telemetry.run) == {second.name}


def test_no_study_is_an_error(tmp_path) -> None:
    with pytest.raises(StoreError, match="holds no study"):
        ek.load_study(tmp_path)
