from __future__ import annotations

import json
import math

import numpy as np
import pytest
from tests.report.conftest import telemetry

from evenkeel.report._results import cells, groups
from evenkeel.report._sections import Section, section
from evenkeel.study import StudyFolder, open_study


def sections(path) -> list[Section]:
    plan, runs, folder = open_study(path)
    return [section(task, model, members, folder) for task, model, members in groups(cells(plan, runs))]


def test_every_method_has_its_panels(make_study) -> None:
    (found,) = sections(make_study({"full": [0.7, 0.5], "component-clip": [0.7, 0.5]}))
    assert found.title == "rte, tiny"
    assert [panel.title for panel in found.losses] == [
        "full: 1 successful, 1 failed",
        "component-clip: 1 successful, 1 failed",
    ]
    assert [panel.title for panel in found.maps.panels] == [
        "full: 1 failed run",
        "full: 1 successful run",
        "component-clip: 1 failed run",
        "component-clip: 1 successful run",
    ]
    assert all(panel.figure and panel.height >= 100 and not panel.note for panel in found.panels())
    keys = [key for key, _, _ in found.maps.measures]
    assert keys == ["norm", "clipped", "ratio", "drift", "turned", "half_time"]
    values = json.loads(found.maps.values)
    assert list(values) == keys
    assert [len(values[key]["maps"]) for key in keys] == [4] * 6  # one for each panel
    assert [len(values[key]["maps"][0]) for key in keys] == [11] * 5 + [1]  # all of training, then its parts


def test_where_no_run_failed_the_place_says_so(make_study) -> None:
    (found,) = sections(make_study({"full": [0.7, 0.7]}))
    failed, successful = found.maps.panels
    assert (failed.figure, failed.note) == (None, "No failed run to show.")
    assert successful.figure is not None


def test_where_all_runs_failed_the_place_says_so(make_study) -> None:
    (found,) = sections(make_study({"full": [0.5, "diverged"]}))
    failed, successful = found.maps.panels
    assert (successful.figure, successful.note) == (None, "No successful run to show.")
    assert failed.title == "full: 2 failed runs"


def test_missing_tables_are_said(make_study) -> None:
    (found,) = sections(make_study({"full": [0.7, 0.5]}, tables=()))
    assert found.scores.figure is not None
    assert found.losses[0].note == "No run left a log of its loss."
    assert found.maps is None
    assert found.unrecorded == "2 finished runs left no record of gradient norms, or one that cannot be read."


def test_a_task_without_results_says_so(make_study) -> None:
    (found,) = sections(make_study({"full": ["queued", "error"]}))
    assert (found.scores.figure, found.scores.note) == (None, "No run has a result yet.")


def test_figures_cannot_end_their_script(make_study) -> None:
    name = "</script><script>alert(1)</script>&\u2028"
    (found,) = sections(make_study({name: [0.7, 0.5]}))
    for panel in found.panels():
        assert not set("<>&\u2028") & set(panel.figure)
        assert json.loads(panel.figure)["data"]
    notes = [note["text"] for note in json.loads(found.scores.figure)["layout"]["annotations"]]
    assert any("&lt;/script&gt;" in note for note in notes)


def test_what_was_measured_besides_has_its_place(make_study) -> None:
    tables = ("log", "telemetry", "course", "predictions", "replacement")
    (found,) = sections(make_study({"full": [0.7, 0.5, 0.72], "b": [0.7, "diverged", 0.6]}, tables=tables))
    assert [panel.title for panel in found.courses] == ["full: 3 runs", "b: 3 runs"]
    assert [panel.title for panel in found.put_back] == ["full: 2 successful, 1 failed", "b: 2 successful, 1 failed"]
    assert [one.method for one in found.agreements] == ["full", "b"]
    assert all(one.every.endswith(" %") and one.successful.endswith(" %") for one in found.agreements)
    assert found.drifts == []  # nothing was trained in phases


def test_scores_in_training_stand_beside_what_the_first_method_reached(make_study) -> None:
    (found,) = sections(make_study({"full": [0.7, 0.9], "b": [0.7, 0.6]}, tables=("course",)))
    first, second = (json.loads(panel.figure)["layout"] for panel in found.courses)
    assert [shape["x0"] for shape in first["shapes"]] == [150]  # a phase ended there
    assert [shape.get("y0") for shape in second["shapes"]] == [0, 0.8]
    assert any("full, median in the end" in note["text"] for note in second["annotations"])


def test_phases_have_their_changes(make_runs, tmp_path) -> None:
    plan, runs = make_runs({"gradual-unfreezing": [0.7, 0.6]})
    folder, rng = StudyFolder(tmp_path), np.random.default_rng(0)
    for run in runs:
        folder.write_run(run.id, {"telemetry": telemetry(0.7, rng, phases=3)})
    (cell,) = cells(plan, runs)
    found = section("rte", "tiny", [cell], folder)
    assert len(found.drifts) == 4
    assert found.drifts[0].title.startswith("gradual-unfreezing: since before fine-tuning")
    (heat,) = json.loads(found.drifts[0].figure)["data"]
    assert heat["x"] == ["1", "2", "3"]
    rows = dict(zip(heat["y"], heat["z"], strict=True))
    assert all(rows["layer 0"][0] < rows["layer 0"][1] < rows["layer 0"][2] for _ in "x")
    assert rows["layer 0"][2] == pytest.approx(math.log10(1e-3 * (1 - math.exp(-251 / 30))), abs=1e-3)
