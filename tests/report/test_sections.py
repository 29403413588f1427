from __future__ import annotations

import json

from evenkeel.report._results import cells, groups
from evenkeel.report._sections import Section, section
from evenkeel.study import open_study


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
    assert [panel.title for panel in found.norms] == [
        "full: 1 failed run",
        "full: 1 successful run",
        "component-clip: 1 failed run",
        "component-clip: 1 successful run",
    ]
    panels = [found.scores, *found.losses, *found.norms]
    assert all(panel.figure and panel.height >= 100 and not panel.note for panel in panels)


def test_where_no_run_failed_the_place_says_so(make_study) -> None:
    (found,) = sections(make_study({"full": [0.7, 0.7]}))
    failed, successful = found.norms
    assert (failed.figure, failed.note) == (None, "No failed run to show.")
    assert successful.figure is not None


def test_where_all_runs_failed_the_place_says_so(make_study) -> None:
    (found,) = sections(make_study({"full": [0.5, "diverged"]}))
    failed, successful = found.norms
    assert (successful.figure, successful.note) == (None, "No successful run to show.")
    assert failed.title == "full: 2 failed runs"


def test_missing_tables_are_said(make_study) -> None:
    (found,) = sections(make_study({"full": [0.7, 0.5]}, tables=()))
    assert found.scores.figure is not None
    assert found.losses[0].note == "No run left a log of its loss."
    assert [panel.figure for panel in found.norms] == [None, None]
    assert "2 finished runs left no record of gradient norms." in found.norms[0].note


def test_a_task_without_results_says_so(make_study) -> None:
    (found,) = sections(make_study({"full": ["queued", "error"]}))
    assert (found.scores.figure, found.scores.note) == (None, "No run has a result yet.")


def test_figures_cannot_end_their_script(make_study) -> None:
    name = "</script><script>alert(1)</script>&\u2028"
    (found,) = sections(make_study({name: [0.7, 0.5]}))
    for panel in (found.scores, *found.losses, *found.norms):
        assert not set("<>&\u2028") & set(panel.figure)
        assert json.loads(panel.figure)["data"]
    notes = [note["text"] for note in json.loads(found.scores.figure)["layout"]["annotations"]]
    assert any("&lt;/script&gt;" in note for note in notes)
