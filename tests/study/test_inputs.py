from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.study._small import InlineEngine, MakePlan, same_results, standing

from evenkeel.errors import EngineError
from evenkeel.study import Prepared, Study, StudyFolder, _inputs, _prepare, prepare
from evenkeel.study._inputs import inputs_come_from, read_inputs, write_inputs
from evenkeel.study.engines._cargo import pack


def made(make_plan: MakePlan, **changes: Any) -> Prepared:
    plan = make_plan(**changes)
    return prepare(plan.tasks[0], plan.models[0], plan.training.max_length)


def rows(prepared: _inputs.Inputs) -> dict[str, Any]:
    texts = {"train": prepared.data.train, **prepared.data.scored}
    return {
        "texts": {part: table.to_dict() for part, table in texts.items()},
        "tokens": {part: table.to_dict() for part, table in prepared.parts.items()},
    }


GRAMMAR = {"tasks": [{"name": "grammar/acceptability", "max_train_samples": 50}]}
HALVES = {"test_split": "half", "max_train_samples": 20}


@pytest.mark.parametrize("task", [{}, HALVES, {**HALVES, "split_seed": 3}], ids=str)
def test_what_is_read_is_what_was_written(make_plan: MakePlan, tmp_path: Path, task: dict[str, Any]) -> None:
    prepared = made(make_plan, tasks=[{**make_plan().tasks[0].model_dump(), **task}])
    write_inputs(prepared, tmp_path / "inputs")
    found = read_inputs(tmp_path / "inputs")
    assert rows(found) == rows(prepared)
    assert found.max_length == prepared.max_length
    assert (found.data.task, found.data.classes) == (prepared.data.task, prepared.data.classes)
    assert found.data.fingerprint == prepared.data.fingerprint
    assert list(found.data.scored) == list(prepared.data.scored)
    assert found.data.train.features == prepared.data.train.features


def test_nothing_of_it_is_copied(make_plan: MakePlan, tmp_path: Path) -> None:
    prepared = made(make_plan, **GRAMMAR)
    write_inputs(prepared, tmp_path / "inputs")
    before = pa.total_allocated_bytes()
    found = read_inputs(tmp_path / "inputs")
    assert pa.total_allocated_bytes() == before
    assert found.parts["train"].data.table.nbytes > 1_000  # so that a copy would have been seen


def test_another_machine_has_it_from_what_was_sent(make_plan: MakePlan, tmp_path: Path) -> None:
    prepared, here = made(make_plan), tmp_path / "here"
    write_inputs(prepared, here)
    parcel, there = pack(here), tmp_path / "there"
    inputs_come_from(there, lambda: parcel.files)
    assert rows(read_inputs(there)) == rows(prepared)


def test_a_full_disk_is_told(make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_inputs.pa, "OSFile", full)
    with pytest.raises(EngineError, match=r"\(No space left on device\); make room there, or let .* TMPDIR name"):
        write_inputs(made(make_plan), tmp_path / "inputs")


def test_runs_of_a_study_do_not_tokenise_again(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, shared = (Study(make_plan(methods=["full"]), StudyFolder(tmp_path / name)) for name in ("plain", "shared"))

    class Without(InlineEngine):
        def run(self, jobs: Any) -> Any:
            _prepare.prepare.cache_clear()
            return super().run([type(job)(spec=job.spec, task=job.task, model=job.model) for job in jobs])

    theirs = plain.run(Without())
    engine, jobs = InlineEngine(), shared.jobs()
    _prepare.prepare(jobs[0].task, jobs[0].model, jobs[0].spec.training.max_length)

    def never(*args: Any) -> None:
        raise AssertionError("tokenised again")

    monkeypatch.setattr(_prepare, "_made", never)
    ours = shared.run(engine)
    assert [standing(run) for run in ours] == ["done", "done"]
    assert same_results(shared.folder, plain.folder, ours, theirs)
    assert {job.inputs for job in engine.ran} == {engine.ran[0].inputs}
    assert engine.ran[0].inputs is not None
    assert not engine.ran[0].inputs.exists()  # it goes with the study
