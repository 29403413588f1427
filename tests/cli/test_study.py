from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.study._small import InlineEngine, MakePlan

import evenkeel.cli._drive as drive
import evenkeel.cli._dry_run as dry
from evenkeel.cli.demo import DEMO_PLAN
from evenkeel.study import Plan, Resources, RunRecord, Study, StudyFolder, calibrate, open_study
from evenkeel.study.engines import Engine, Job, Report
from evenkeel.testing._processes import alive

Call = Callable[..., Any]
looking = sys.modules["evenkeel.cli.status"]  # the package hides it behind the command of that name


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive, "LocalEngine", InlineEngine)


def usual(data: Path, model: Path, out: Path, *more: object) -> list[object]:
    files = ["--train", data / "train.csv", "--validation", data / "validation.csv", "--model", model]
    recipe = [
        "--task",
        "mine",
        "--methods",
        "full,component-clip",
        "--lr",
        "5e-3",
        "--epochs",
        "2",
        "--batch-size",
        "8",
    ]
    return [*files, *recipe, "--out", out, *more]


@pytest.mark.usefixtures("inline")
def test_a_study_ends_with_a_table_and_a_report(
    evenkeel: Call, small_data: Path, small_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    said = evenkeel("study", *usual(small_data, small_model, out, "--seeds", "2"))
    assert said.code == 0
    lines = [line for line in said.out.splitlines() if line.startswith("mine  ")]
    assert len(lines) == 4  # no terminal: a plain line for each run
    for line, (method, seed) in zip(
        lines, [("full", 1), ("component-clip", 1), ("full", 2), ("component-clip", 2)], strict=True
    ):
        assert line.startswith(f"mine  {method}  seed {seed}: accuracy 0.")
    assert "\x1b" not in said.out
    assert said.out.splitlines()[-1] == f"report: {out / 'report.html'}"
    assert (out / "report.html").is_file()
    assert (out / "results.md").is_file()

    status = evenkeel("status", out)
    assert status.code == 0
    assert "4 of 4 runs have a result" in status.out
    assert evenkeel("report", out).out.splitlines()[-1] == f"report: {out / 'report.html'}"

    again = evenkeel("study", *usual(small_data, small_model, out, "--seeds", "1,2,3"))
    assert again.code == 0
    assert [line.split(": ")[0] for line in again.out.splitlines() if line.startswith("mine  ")] == [
        "mine  full  seed 3",
        "mine  component-clip  seed 3",
    ]
    assert {run.attempts for run in open_study(out)[1]} == {1}


@pytest.mark.usefixtures("inline")
def test_a_plan_in_a_file_does_the_same(evenkeel: Call, small_data: Path, small_model: Path, tmp_path: Path) -> None:
    plan = tmp_path / "study.yaml"
    plan.write_text(
        f"tasks:\n- {{name: mine, train: {small_data}/train.csv, validation: {small_data}/validation.csv}}\n"
        f"models: [{small_model}]\nmethods: [full, component-clip]\nseeds: [2]\n"
        "training: {learning_rate: 5e-3, epochs: 2, batch_size: 8}\n",
        encoding="utf-8",
    )
    assert evenkeel("study", plan, "--out", tmp_path / "plan", "--workers", "1").code == 0
    assert evenkeel("study", *usual(small_data, small_model, tmp_path / "options", "--seeds", "2,3")).code == 0
    ids = [{run.id for run in open_study(tmp_path / name)[1]} for name in ("plan", "options")]
    assert ids[0] < ids[1]


@pytest.mark.usefixtures("inline")
def test_layer_replacement_is_asked_for_by_an_option(
    evenkeel: Call, small_data: Path, small_model: Path, tmp_path: Path
) -> None:
    arguments = usual(small_data, small_model, tmp_path / "out", "--seeds", "1", "--methods", "full")
    assert evenkeel("study", *arguments, "--layer-replacement").code == 0
    plan, (run,), folder = open_study(tmp_path / "out")
    assert plan.measures.layer_replacement
    assert folder.read_run(run.id, "replacement") is not None


class Broken(Engine):
    """Its first job raises, the second never comes back, the others diverge not: they run."""

    def __init__(self, *, workers: int | None = None, resources: Resources) -> None:
        self.inline = InlineEngine()

    def run(self, jobs: Sequence[Job]) -> Iterator[Report]:
        for job in jobs:
            if job.spec.seed == 3:
                yield from self.inline.run([job])
                continue
            yield Report(job=job, event="started")
            if job.spec.seed == 1:
                yield Report(job=job, event="raised", traceback="Traceback\n  somewhere\nOSError: [disk] is full")
            else:
                yield Report(job=job, event="lost")


def test_runs_that_broke_are_named(
    evenkeel: Call, small_data: Path, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drive, "LocalEngine", Broken)
    arguments = usual(small_data, small_model, tmp_path / "out", "--seeds", "3", "--methods", "full")
    said = evenkeel("study", *arguments)
    assert "full, seed 1: error: OSError: [disk] is full" in said.out
    assert "full, seed 2: lost: its process died again and again" in said.out
    assert "2 runs have no result; the same command tries them again" in said.out
    status = evenkeel("status", tmp_path / "out")
    assert "1 of 3 runs have a result" in status.out


def test_where_every_run_broke_the_reasons_are_told(
    evenkeel: Call, small_data: Path, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drive, "LocalEngine", Broken)
    said = evenkeel("study", *usual(small_data, small_model, tmp_path / "out", "--seeds", "1", "--methods", "full"))
    assert said.code == 2
    assert "full, seed 1: error: OSError: [disk] is full" in said.out
    assert "no finished run to report on" in said.err


def test_a_status_counts_what_is_running(evenkeel: Call, make_plan: MakePlan, tmp_path: Path) -> None:
    study = Study(make_plan(), StudyFolder(tmp_path / "out"))
    seen = []

    def look(report: Report) -> None:
        if report.event == "started" and report.job.spec.seed == 2:
            seen.append(evenkeel("status", tmp_path / "out"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.run(InlineEngine(), on_report=look)
    (said,) = seen
    assert said.code == 0
    assert "2 of 4 runs have a result" in said.out
    rows = [line.split() for line in said.out.splitlines() if line.startswith(("full ", "component-clip "))]
    # runs with a result; the running one of `full`, and of `component-clip` the one that waits
    assert [(row[0], row[1], row[-1]) for row in rows] == [("full", "1/2", "1"), ("component-clip", "1/2", "1")]
    assert "1 running" in said.out.splitlines()[0]


def test_the_demo_is_a_plan() -> None:
    plan = Plan.checked({**DEMO_PLAN, "seeds": 2}, where="the demo")
    assert plan.methods == ("full", "gradual-unfreezing", "component-clip")


@pytest.mark.usefixtures("inline")
def test_the_demo_drives_its_plan(evenkeel: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driven: list[tuple[Plan, Path, int | None]] = []
    monkeypatch.setattr(drive, "drive", lambda plan, out, *, workers: driven.append((plan, out, workers)))
    said = evenkeel("demo", "--out", tmp_path, "--seeds", "2", "--workers", "1")
    assert said.code == 0
    assert driven == [(Plan.checked({**DEMO_PLAN, "seeds": 2}, where="the demo"), tmp_path, 1)]


# --- plans: changed from the command line, looked at beforehand, watched


@pytest.fixture
def plan_file(small_data: Path, small_model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(
        f"tasks:\n- {{name: mine, train: {small_data}/train.csv, validation: {small_data}/validation.csv}}\n"
        f"models: [{small_model}]\nmethods: [full, component-clip]\nseeds: 1\n"
        "training: {learning_rate: 5e-3, epochs: 2, batch_size: 8}\n",
        encoding="utf-8",
    )
    return path


@pytest.mark.usefixtures("inline")
def test_a_plan_is_extended_from_the_command_line(evenkeel: Call, plan_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert evenkeel("study", plan_file, "--out", out).code == 0
    said = evenkeel(
        "study", plan_file, "--out", out, "--set", "seeds=2", "--set", "methods=[full, component-clip, llrd]"
    )
    assert said.code == 0
    ran = [line.split(": ")[0] for line in said.out.splitlines() if line.startswith("mine  ")]
    assert sorted(ran) == [
        "mine  component-clip  seed 2",
        "mine  full  seed 2",
        "mine  llrd  seed 1",
        "mine  llrd  seed 2",
    ]
    fewer = ["--set", "seeds=3", "--set", "methods=[full, component-clip, llrd]", "--set", "exclude=[{method: llrd}]"]
    refused = evenkeel("study", plan_file, "--out", out, *fewer)
    assert refused.code == 2
    assert "runs that this plan leaves out" in refused.err


@pytest.mark.usefixtures("inline")
def test_recipes_are_told_apart(evenkeel: Call, plan_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep = ["--set", "sweep.training.learning_rate=[1e-3, 5e-3]", "--set", "overrides.adam_beta2=0.98"]
    said = evenkeel("study", plan_file, "--out", out, *sweep)
    assert said.code == 0
    lines = [line.split(": ")[0] for line in said.out.splitlines() if line.startswith("mine  ")]
    assert "mine  full  learning_rate 0.001  seed 1" in lines
    assert len(set(lines)) == 4
    page = (out / "results.md").read_text(encoding="utf-8")
    assert page.count("learning\\_rate 0.001") == 1
    assert page.count("learning\\_rate 0.005") == 1
    assert {run.spec.overrides["adam_beta2"] for run in open_study(out)[1]} == {0.98}


@pytest.mark.usefixtures("inline")
def test_a_dry_run_tells_what_would_be_done(
    evenkeel: Call, plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry, "calibrate_side_by_side", lambda jobs, *, workers: [calibrate(job) for job in jobs])
    out = tmp_path / "out"
    said = evenkeel("study", plan_file, "--out", out, "--dry-run", "--workers", "2", "--set", "seeds=3")
    assert said.code == 0
    assert "6 runs: 1 task x 1 model x 2 methods x 3 seeds" in said.out
    assert "with 2 at a time" in said.out
    assert "on disk" in said.out
    assert not out.exists()
    assert max(map(len, said.out.splitlines())) <= 80

    assert evenkeel("study", plan_file, "--out", out).code == 0
    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    more = evenkeel("study", plan_file, "--out", out, "--dry-run", "--set", "seeds=2")
    assert "4 runs: 1 task x 1 model x 2 methods x 2 seeds; 2 are done already" in more.out
    assert {path: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    done = evenkeel("study", plan_file, "--out", out, "--dry-run")
    assert done.out.splitlines()[-1] == "2 runs: 1 task x 1 model x 2 methods x 1 seed; 2 are done already"


def test_a_study_is_watched_to_its_end(
    evenkeel: Call, make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "_SECONDS_BETWEEN_LOOKS", 0.1)
    study = Study(make_plan(methods=["full"], seeds=3), StudyFolder(tmp_path / "out"))
    begun, worker = (
        threading.Event(),
        threading.Thread(target=lambda: study.run(InlineEngine(), on_report=lambda _: begun.set())),
    )
    worker.start()
    assert begun.wait(60)
    said = evenkeel("status", tmp_path / "out", "--watch")
    worker.join()
    assert said.code == 0
    seen = [int(line.split()[0]) for line in said.out.splitlines() if "of 3 runs have a result" in line]
    assert seen == sorted(seen)
    assert seen[-1] == 3


# --- real processes


def begin(arguments: list[object], scratch: Path) -> subprocess.Popen[str]:
    program = Path(sys.executable).with_name("evenkeel")
    scratch.mkdir(exist_ok=True)
    # Tests that were started in the background ignore Ctrl-C, and so would what they start; handlers are not inherited.
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [str(program), "study", *map(str, arguments)],
            env={**os.environ, "TMPDIR": str(scratch)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a terminal of its own, as it were: Ctrl-C goes to the workers too
        )
    finally:
        signal.signal(signal.SIGINT, ignored)


def wait_for(found: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


def runs_of(out: Path) -> list[RunRecord]:
    return open_study(out)[1] if (out / "study.sqlite").is_file() and (out / "runs").is_dir() else []


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()]


@pytest.mark.slow
@pytest.mark.usefixtures("inline")
def test_ctrl_c_exits_with_130_and_the_same_command_finishes(
    evenkeel: Call, small_data: Path, small_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    recipe = ["--methods", "full", "--seeds", "6", "--workers", "1", "--epochs", "40"]
    arguments = usual(small_data, small_model, out, *recipe)
    process = begin(arguments, tmp_path / "scratch")
    wait_for(lambda: any(run.finished for run in runs_of(out)), process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    done, said = err.strip().removeprefix("interrupted: ").split(" of ", 1)
    assert said == "6 runs have a result; what was finished is kept; the same command goes on"
    assert int(done) == sum(run.finished for run in runs_of(out))
    before = [run.status for run in runs_of(out)]  # how many were done by then is chance
    assert before == sorted(before)
    assert set(before) == {"done", "queued"}

    said = evenkeel("study", *arguments)
    assert said.code == 0
    assert {run.status for run in runs_of(out)} == {"done"}
    for status, run in zip(before, runs_of(out), strict=True):
        assert (f"seed {run.spec.seed}: accuracy" in said.out) == (status == "queued")
        assert run.attempts == 1 or status == "queued"


@pytest.mark.slow
def test_workers_end_when_their_driver_is_killed(small_data: Path, small_model: Path, tmp_path: Path) -> None:
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    arguments = usual(small_data, small_model, out, "--methods", "full", "--seeds", "2", "--workers", "2")
    process = begin([*arguments, "--epochs", "100000"], scratch)
    wait_for(lambda: len(list(scratch.glob("evenkeel-*"))) == 2, process)  # both train
    workers = children(process.pid)
    assert len(workers) >= 2
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 15
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, workers))
    assert {run.status for run in open_study(out)[1]} == {"running"}  # nobody was left to say otherwise
