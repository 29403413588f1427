from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from tests.report.conftest import plan_and_specs

from evenkeel.report import compare_studies
from evenkeel.study import Store, StudyFolder

RNG = np.random.default_rng(5)
GOOD = [round(float(score), 4) for score in RNG.normal(0.72, 0.01, 12)]


def saved(path: Path, make_runs: Any, fates: dict[str, Any], *, torch: str = "2.13.0", data: str = "d" * 16) -> Path:
    plan, runs = make_runs(fates)
    _, specs = plan_and_specs(fates)
    folder = StudyFolder(path)
    path.mkdir()
    specs = [spec.model_copy(update={"data_fingerprint": data}) for spec in specs]
    with closing(Store(folder.store)) as store:
        store.save_plan(plan, specs)
        for spec, run in zip(specs, runs, strict=True):
            made = dict(run.outcome)
            versions = {**made["provenance"]["versions"], "torch": torch}
            made["provenance"] = {**made["provenance"], "versions": versions}
            store.finish(spec.id, run.status, outcome=made)
    return path


def test_the_same_study_twice_differs_in_nothing(make_runs, tmp_path: Path) -> None:
    one, other = (saved(tmp_path / name, make_runs, {"full": GOOD, "b": GOOD}) for name in "xy")
    found = compare_studies(one, other)
    assert [judged.other.method for judged in found.judged] == ["full (second)", "b (second)"]
    assert all(judged.scores and judged.scores.difference == 0 and judged.paired for judged in found.judged)
    assert (list(found.differences), found.only) == ([], ([], []))


def test_what_was_not_the_same_is_said(make_runs, tmp_path: Path) -> None:
    one = saved(tmp_path / "x", make_runs, {"full": GOOD, "only-here": GOOD})
    worse = [score - 0.1 for score in GOOD]
    other = saved(tmp_path / "y", make_runs, {"full": worse}, torch="9.9", data="e" * 16)
    found = compare_studies(one, other)
    (judged,) = found.judged
    assert judged.mean == "less"
    assert (
        "the data of rte is not the same (dddddddd there, eeeeeeee here): scores are of other examples"
        in found.differences
    )
    assert "torch is 2.13.0 there, and 9.9 here" in found.differences
    assert found.only == (["rte, tiny, only-here"], [])


def test_another_recipe_is_another_thing(make_runs, tmp_path: Path) -> None:
    one = saved(tmp_path / "x", make_runs, {"full": GOOD})
    folder = StudyFolder(tmp_path / "y")
    plan, runs = make_runs({"full": GOOD})
    folder.path.mkdir()
    faster = plan.training.model_copy(update={"learning_rate": 1e-3})
    with closing(Store(folder.store)) as store:
        specs = [run.spec.model_copy(update={"training": faster}) for run in runs]
        store.save_plan(plan, specs)
        for spec, run in zip(specs, runs, strict=True):
            store.finish(spec.id, run.status, outcome=run.outcome)
    assert compare_studies(one, folder.path).judged == []
