from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file
from tests._tiers import few
from tests.study._small import MakePlan

from evenkeel.errors import MethodError
from evenkeel.study import Plan, RunResult, Study, StudyFolder, execute
from evenkeel.study._checkpoints import Checkpointing, RunStopped, checkpoint_bytes
from evenkeel.study._manifest import Manifest, write_manifest
from evenkeel.study._meter import Meter, Spent
from evenkeel.study.engines import Job

TAKEN = ("wall_seconds", "cpu_seconds", "peak_memory")


def job_of(plan: Plan) -> Job:
    return Study(plan, StudyFolder(Path("unused"))).jobs()[0]


def run(job: Job, how: Checkpointing | None = None, *, stop_at: int | None = None) -> RunResult:
    """Execute a job; ``stop_at`` counts points of the loss curve."""
    asked = iter(range(1, 10_000))
    return execute(
        job.spec, job.task, model=job.model, measures=job.measures, checkpointing=how,
        stopping=lambda: next(asked) == stop_at,
    )  # fmt: skip


def same(one: RunResult, other: RunResult) -> bool:
    outcomes = [{key: value for key, value in found.outcome.items() if key not in TAKEN} for found in (one, other)]
    return outcomes[0] == outcomes[1] and all(
        table.equals(other.tables[name], check_metadata=False) for name, table in one.tables.items()
    )


@pytest.fixture
def how(tmp_path: Path) -> Checkpointing:
    return Checkpointing(folder=tmp_path / "checkpoints" / "run", every_steps=1_000_000)


def left(how: Checkpointing) -> list[str]:
    return sorted(path.name for path in how.folder.iterdir() if not path.name.startswith("."))


# --- going on


@pytest.mark.parametrize("group_by_length", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("stop_at", few([3, 4, 6], {6}))  # within the first epoch, between the two, within the second
def test_a_run_that_stopped_goes_on_as_if_nothing_had_been(
    make_plan: MakePlan, how: Checkpointing, stop_at: int, group_by_length: bool
) -> None:
    job = job_of(make_plan(training={"group_by_length": group_by_length}))
    whole = run(job)
    with pytest.raises(RunStopped, match=f"run {job.spec.id} stopped after step {stop_at}"):
        run(job, how, stop_at=stop_at)
    assert left(how) == [f"checkpoint-{stop_at}"]
    before = torch.get_rng_state()
    resumed = run(job, how)
    assert same(whole, resumed)
    assert not torch.equal(before, torch.get_rng_state())
    assert resumed.outcome["steps"] == 8


METHODS = [
    "component-clip",
    "gradual-unfreezing:epochs=1",
    "lora",
    "swa",
    "ema",
    "mixout",
    "smart",
    "sam",
    "reinit",
    "child-tuning-d",
    "zclip",
    "llrd+mosbach",
]


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_method_goes_on(make_plan: MakePlan, how: Checkpointing, method: str) -> None:
    job = job_of(make_plan(methods=[method], measures={"layer_replacement": True}))
    whole = run(job)
    for stop_at in (3, 2):  # and once more
        with pytest.raises(RunStopped):
            run(job, how, stop_at=stop_at)
    assert left(how) == ["checkpoint-5"]
    assert same(whole, run(job, how))


@pytest.mark.slow
@pytest.mark.matrix
def test_a_loss_curve_of_means_goes_on_too(make_plan: MakePlan, how: Checkpointing) -> None:
    job = job_of(make_plan(training={"epochs": 50.0, "precision": "bf16"}))  # 200 steps, 3 to a point
    whole = run(job)
    with pytest.raises(RunStopped):
        run(job, how, stop_at=20)
    assert left(how) == ["checkpoint-60"]
    assert same(whole, run(job, how))
    assert set(np.diff(whole.tables["log"]["step"])) == {3}


# --- when, and how many


@pytest.mark.parametrize(
    ("every", "clock", "written"),
    [
        ({"every_steps": 3}, 0.0, ["checkpoint-3", "checkpoint-6"]),
        ({"every_minutes": 2.0}, 50.0, ["checkpoint-3", "checkpoint-6"]),  # seconds that each step seems to take
        ({"every_steps": 5, "every_minutes": 1.0}, 25.0, ["checkpoint-3", "checkpoint-5"]),
        ({"every_steps": 8}, 0.0, []),  # what has ended needs none
    ],
)
def test_checkpoints_come_when_they_are_due_and_the_latest_stays(
    make_plan: MakePlan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    every: dict[str, Any],
    clock: float,
    written: list[str],
) -> None:
    how, seen = Checkpointing(folder=tmp_path / "run", **every), list[list[str]]()
    now = [0.0]

    def watch() -> bool:
        now[0] += clock
        seen.append(left(how))
        return False

    monkeypatch.setattr("evenkeel.study._checkpoints.time.monotonic", lambda: now[0])
    job = job_of(make_plan())
    execute(job.spec, job.task, model=job.model, checkpointing=how, stopping=watch)
    assert all(len(names) <= 1 for names in seen)
    assert list(dict.fromkeys(name for names in [*seen, left(how)] for name in names)) == written
    assert [path.name for path in how.folder.iterdir() if path.name != ".lock"] == written[-1:]  # and nothing half


def test_what_a_run_took_is_summed_over_its_parts(
    make_plan: MakePlan, how: Checkpointing, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(make_plan())
    monkeypatch.setattr(Meter, "spent", lambda _: Spent(wall_seconds=100.0, cpu_seconds=50.0, peak_memory={"host": 7}))
    with pytest.raises(RunStopped):
        run(job, how, stop_at=2)
    monkeypatch.setattr(Meter, "spent", lambda _: Spent(wall_seconds=10.0, cpu_seconds=5.0, peak_memory={"host": 3}))
    outcome = run(job, how).outcome
    assert (outcome["wall_seconds"], outcome["cpu_seconds"], outcome["peak_memory"]) == (110.0, 55.0, {"host": 7})


def test_a_run_that_diverges_leaves_no_checkpoint_to_go_on_from(make_plan: MakePlan, how: Checkpointing) -> None:
    job = job_of(make_plan(training={"learning_rate": 1e30}))
    assert run(job, replace(how, every_steps=1)).diverged
    names = left(how)
    assert run(job, how).diverged  # from what there is, the step before
    assert names in ([], ["checkpoint-1"])


def test_a_checkpoint_takes_about_what_is_told_before(make_plan: MakePlan, how: Checkpointing) -> None:
    job = job_of(make_plan(models=["tiny"], training={"epochs": 1.0}))
    with pytest.raises(RunStopped):
        run(job, how, stop_at=1)
    (made,) = how.folder.glob("checkpoint-*")
    parameters = sum(tensor.numel() for tensor in load_file(made / "model.safetensors").values())
    there = sum(path.stat().st_size for path in made.iterdir())
    assert checkpoint_bytes(parameters) == pytest.approx(there, rel=0.1)


# --- what is not taken up


def torn(made: Path) -> None:
    (made / "optimizer.pt").write_bytes((made / "optimizer.pt").read_bytes()[:100])


def unfinished(made: Path) -> None:
    (made / "evenkeel_checkpoint.json").unlink()


def foreign_file(made: Path) -> None:
    (made / "pytorch_model.bin").write_bytes(b"anything")


def linked(made: Path) -> None:
    target = made.parent.parent / "elsewhere.pt"
    (made / "optimizer.pt").rename(target)
    (made / "optimizer.pt").symlink_to(target)


def link_as_a_whole(made: Path) -> None:
    target = made.parent.parent / "elsewhere"
    made.rename(target)
    made.symlink_to(target)


def other_versions(made: Path) -> None:
    file = made / "evenkeel_checkpoint.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["provenance"]["versions"]["torch"] = "1.0"
    file.write_text(json.dumps(content), encoding="utf-8")


def another_run(made: Path) -> None:
    file = made / "evenkeel_checkpoint.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**content, "run": "0" * 16}), encoding="utf-8")


def no_manifest_at_all(made: Path) -> None:
    (made / "evenkeel_checkpoint.json").write_text("[" * 100_000, encoding="utf-8")


def a_file_of_that_name(made: Path) -> None:
    shutil.rmtree(made)
    made.touch()


@pytest.mark.parametrize(
    "spoil",
    [
        torn, unfinished, foreign_file, linked, link_as_a_whole, other_versions, another_run, no_manifest_at_all,
        a_file_of_that_name,
    ],
    ids=lambda spoil: spoil.__name__,
)  # fmt: skip
def test_what_is_not_whole_or_not_ours_is_dropped_and_the_run_begins_anew(
    make_plan: MakePlan, how: Checkpointing, spoil: Callable[[Path], None]
) -> None:
    job = job_of(make_plan(training={"epochs": 0.5}))
    with pytest.raises(RunStopped):
        run(job, how, stop_at=1)
    (made,) = how.folder.glob("checkpoint-*")
    spoil(made)
    (how.folder / ".writing-killed").mkdir()
    steps: list[int] = []
    execute(job.spec, job.task, model=job.model, checkpointing=how, stopping=lambda: bool(steps.append(1)))
    assert len(steps) == 1  # the point of step 1 again; that of step 2 is the end
    assert left(how) == []
    assert not (how.folder / ".writing-killed").exists()
    kept = how.folder.parent / "elsewhere"
    assert not kept.exists() or list(kept.iterdir())  # what a link pointed at is nobody's to remove


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "file",
    few(
        ["optimizer.pt", "scheduler.pt", "rng_state.pth", "evenkeel_methods.pt"],
        {"optimizer.pt", "evenkeel_methods.pt"},
    ),
)
def test_no_checkpoint_can_run_code(make_plan: MakePlan, how: Checkpointing, tmp_path: Path, file: str) -> None:
    job = job_of(make_plan(methods=["zclip"]))  # has a state of its own
    with pytest.raises(RunStopped):
        run(job, how, stop_at=1)
    (made,) = how.folder.glob("checkpoint-*")
    assert not (made / "training_args.bin").exists()
    assert (made / file).exists()
    torch.save(Bomb(tmp_path / "exploded"), made / file)
    manifest = read_manifest_without_looking(made)
    (made / "evenkeel_checkpoint.json").unlink()
    write_manifest(made, manifest)
    with pytest.raises((pickle.UnpicklingError, MethodError)):
        run(job, how)
    assert not (tmp_path / "exploded").exists()


def read_manifest_without_looking(made: Path) -> Manifest:
    return Manifest.model_validate_json((made / "evenkeel_checkpoint.json").read_bytes())


def test_two_processes_never_share_the_checkpoints_of_a_run(
    make_plan: MakePlan, how: Checkpointing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evenkeel.study._checkpoints._LONGEST_WAIT_SECONDS", 0.1)
    how.folder.mkdir(parents=True)
    with FileLock(how.folder / ".lock"), pytest.raises(Timeout):
        run(job_of(make_plan()), how)
