"""Runs that several processes share."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from tests.study import _drive_study, _shared
from tests.study._small import InlineEngine, MakePlan, rows, save_model, standing, write_csv
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

from evenkeel.errors import EngineError, EvenkeelError, MethodError, PlanError, StoreError
from evenkeel.study import Plan, Resources, RunResult, Study, StudyFolder, calibrate, execute, finetune_one, open_study
from evenkeel.study._smaller import smaller
from evenkeel.study.engines import Job, LocalEngine, Report, execute_job, launch
from evenkeel.testing._processes import alive, children

TWO = {"processes_per_run": 2}


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model, without dropout."""
    folder = save_model(tmp_path_factory.mktemp("models") / "plain")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def job_of(plan: Plan) -> Job:
    return Study(plan, StudyFolder(Path("unused"))).jobs()[0]


# --- what is refused before anything starts


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        (
            {"training": {"batch_size": 9}},
            PlanError,
            "batch_size 9 counts the examples of an optimizer step over all processes, and is not to be split into 2",
        ),
        (
            {"training": {"batch_size": 6}, "overrides": {"gradient_accumulation_steps": 2}},
            PlanError,
            r"split into 4 equal parts \(2 processes, 2 accumulated\); change one of them",
        ),
        ({"methods": ["sam"]}, MethodError, "sam acts on whole parameters, and FSDP shards them over 2 processes"),
        ({"methods": ["component-clip+mixout"]}, MethodError, "mixout acts on whole parameters.*work sharded"),
        ({"checkpoints": {"every_steps": 3}}, PlanError, "checkpoints: each of the 2 processes of a run"),
        ({"measures": {"layer_replacement": True}}, PlanError, "layer_replacement puts whole weights back, and each"),
    ],
    ids=["batch", "accumulation", "method", "mix", "checkpoints", "replacement"],
)
def test_what_cannot_be_shared_is_refused_first(
    make_plan: MakePlan, tmp_path: Path, changes: dict[str, Any], error: type[EvenkeelError], said: str
) -> None:
    study = Study(make_plan(resources=TWO, **changes), StudyFolder(tmp_path / "out"))
    with pytest.raises(error, match=said):
        study.run(InlineEngine())
    assert not study.folder.path.exists()


def test_fp16_is_refused(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evenkeel.study._check._check_precision", lambda _: None)  # as on a GPU
    with pytest.raises(PlanError, match="fp16's loss scale would be another one in each of the 2 processes"):
        job_of(make_plan(resources=TWO, training={"precision": "fp16"}))


@pytest.mark.parametrize(
    "resources", [{"runs_per_gpu": 2}, {"runs_per_gpu": "auto"}, {"gpus": 0.5}, {"gpus": 2}], ids=str
)
def test_processes_of_a_run_share_no_gpu(make_plan: MakePlan, resources: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="each of the 2 processes of a run .* has one GPU to itself; leave runs_per"):
        make_plan(resources={**TWO, **resources})


@pytest.mark.parametrize("resources", [{"runs_per_gpu": 1}, {"gpus": 0}, {"gpus": 1}, {"cpus": 2}], ids=str)
def test_other_resources_are_those_of_each_process(make_plan: MakePlan, resources: dict[str, Any]) -> None:
    found = make_plan(resources={**TWO, **resources}).resources
    assert (found.run_cpus, found.threads) == (2 * found.cpus, found.cpus)
    assert found.run_gpus == (None if found.gpus is None else 2 * found.gpus)


def test_the_number_is_a_part_of_the_run(make_plan: MakePlan) -> None:
    one, two = job_of(make_plan()).spec, job_of(make_plan(resources=TWO)).spec
    assert (one.processes, two.processes) == (1, 2)
    assert one.id != two.id
    assert two.model_copy(update={"processes": 1}).id == one.id
    older = one.model_dump(mode="json", exclude={"processes"})
    assert type(one).model_validate(older).id == one.id  # what was recorded before keeps its name


def test_a_folder_keeps_its_number(make_plan: MakePlan, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    Study(make_plan(methods=["full"], seeds=1), folder).run(InlineEngine())
    with pytest.raises(StoreError, match="holds runs of 1 processes each, and now resources.processes_per_run is 2"):
        Study(make_plan(methods=["full"], seeds=1, resources=TWO), folder).run(InlineEngine())


def test_a_single_process_cannot_execute_it(make_plan: MakePlan) -> None:
    job = job_of(make_plan(resources=TWO))
    with pytest.raises(EngineError, match="the run is one of 2 processes, and this is one of 1; let an engine"):
        execute(job.spec, job.task, model=job.model)


def test_callbacks_do_not_follow_it(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan(methods=["full"], seeds=1, resources=TWO)
    with pytest.raises(PlanError, match="the run is one of 2 processes .*, and callbacks belong to this one"):
        finetune_one(plan, tmp_path / "out", callbacks=[TrainerCallback()])


def test_as_many_run_at_a_time_as_their_processes_have_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 12)
    wanted = {(1, 1.0): 12, (2, 1.0): 6, (2, 2.0): 3, (5, 1.0): 2, (16, 1.0): 1}
    for (processes, cpus), packing in wanted.items():
        resources = Resources(processes_per_run=processes, cpus=cpus, gpus=0)
        assert LocalEngine(resources=resources).packing == packing


# --- the launcher, with real processes


def left(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("pid-")) for path in folder.glob("pid-*")]


def gone(processes: Callable[[], set[int]] | list[int], *, seconds: float = 15) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not (processes() if callable(processes) else any(map(alive, processes))):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_processes_find_each_other_and_leave_nothing(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before, handlers = children(), [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    environment = dict(os.environ)
    found = launch(2, _shared.joined, 10)
    assert found == [21, 0, 2, torch.get_num_threads(), os.getpid()]
    assert gone(lambda: children(besides=before))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert dict(os.environ) == environment
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "event", "said"),
    [
        ("raise", "raised", "ZeroDivisionError: rank 1 was told to raise"),
        ("kill", "lost", "the process of rank 1 was ended by SIGKILL (no memory left on this machine?)"),
        pytest.param("no memory", "raised", "MemoryError", marks=pytest.mark.matrix),
        pytest.param("exit", "lost", "the process of rank 1 ended with exit code 3", marks=pytest.mark.matrix),
    ],
)
def test_a_process_that_fails_takes_the_whole_run_along(
    make_plan: MakePlan, tmp_path: Path, capfd: pytest.CaptureFixture[str], how: str, event: str, said: str
) -> None:
    from evenkeel.study.engines import report_of, work

    def by(job: Job, stopping: Callable[[], bool]) -> RunResult:
        return launch(2, _shared.fails, how, 1, tmp_path)  # type: ignore[return-value]

    job = job_of(make_plan())
    report = report_of(job, work(job, by=by))
    assert report.event == event
    assert (report.traceback or "").strip().splitlines()[-1] == said
    assert report.out_of_memory is (how == "no memory")
    if event == "raised":
        assert "tests/study/_shared.py" not in (report.traceback or "")  # no folder of this machine
        assert "_shared.py" in (report.traceback or "") or how == "no memory"
    assert len(left(tmp_path)) == 2
    assert gone(left(tmp_path))
    assert capfd.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.matrix
def test_what_cannot_be_sent_back_is_told() -> None:
    from evenkeel.study.engines import RankError

    with pytest.raises(RankError, match="pickle"):
        launch(2, _shared.unsendable)


@pytest.mark.slow
@pytest.mark.matrix
def test_ctrl_c_ends_all_of_them(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def press() -> None:
        while len(left(tmp_path)) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            launch(2, _shared.waits, tmp_path)
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert gone(left(tmp_path))


# --- runs, with real processes


def curve(result: RunResult, column: str = "loss") -> list[float]:
    return [float(value) for value in result.tables["log"][column].to_pylist()]


def assert_alike(ours: RunResult, theirs: RunResult, *, tolerance: float = 1e-4) -> None:
    """Compare a run of one process and one of two: equal within float32 rounding, in order."""
    assert curve(theirs) == pytest.approx(curve(ours), rel=tolerance, abs=tolerance)
    assert curve(theirs, "learning_rate") == curve(ours, "learning_rate")
    for key in ("scores", "all_scores", "majority", "failed", "steps"):
        assert theirs.outcome[key] == ours.outcome[key]
    one, other = (result.tables["predictions"].to_pydict() for result in (ours, theirs))
    for column in ("part", "example", "label", "prediction"):
        assert one[column] == other[column]
    np.testing.assert_allclose(other["logits"], one["logits"], rtol=tolerance, atol=tolerance)
    one, other = (result.tables["telemetry"] for result in (ours, theirs))
    assert one.schema.equals(other.schema)
    rounding = np.array([name.endswith("key.bias") for name in one["component"].to_pylist()])  # all of its gradient
    for name, field in zip(one.schema.names, one.schema, strict=True):
        if not pa.types.is_floating(field.type):
            assert one[name].equals(other[name]), name
            continue
        expected, found = one[name].to_numpy()[~rounding], other[name].to_numpy()[~rounding]
        scale = np.nanmax(np.abs(expected), initial=0.0, where=np.isfinite(expected))
        np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-4 * scale, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"methods": ["full"]},
        {"methods": ["component-clip"]},
        pytest.param({"methods": ["component-clip"], "training": {"group_by_length": False}}, marks=pytest.mark.matrix),
        pytest.param({"methods": ["full"], "overrides": {"gradient_accumulation_steps": 2}}, marks=pytest.mark.matrix),
        pytest.param(
            {"methods": ["component-clip+gradual-unfreezing"], "training": {"epochs": 1.0}}, marks=pytest.mark.matrix
        ),
        pytest.param({"methods": ["global-clip+llrd"], "vary": ["order"]}, marks=pytest.mark.matrix),
    ],
    ids=["full", "component-clip", "random order", "accumulated", "phases", "rates, order apart"],
)
def test_two_processes_give_what_one_gives(make_plan: MakePlan, plain_model: Path, changes: dict[str, Any]) -> None:
    changes = {
        **changes,
        "models": [str(plain_model)],
        "training": {"learning_rate": 1e-3, **changes.get("training", {})},
    }
    one = job_of(make_plan(**changes))
    ours = execute(one.spec, one.task, model=one.model)
    theirs, steps, largest = launch(2, _shared.proved, job_of(make_plan(**changes, resources=TWO)))
    assert steps == ours.outcome["steps"] == 8
    assert 0.5 <= largest < 0.7  # 13 rows are 7 and 6
    assert_alike(ours, theirs)
    one_with, two_with = (
        {key: value for key, value in result.outcome["provenance"].items() if key not in ("commit", "dirty")}
        for result in (ours, theirs)  # somebody may work in the checkout
    )
    assert two_with == {**one_with, "processes": 2}
    assert theirs.outcome["cpu_seconds"] > 0
    assert theirs.outcome["peak_memory"]["host"] > ours.outcome["peak_memory"]["host"]  # of both


@pytest.mark.slow
@pytest.mark.matrix
def test_three_processes_give_what_one_gives(make_plan: MakePlan, plain_model: Path, tmp_path: Path) -> None:
    train, validation = write_csv(tmp_path / "a.csv", rows(30)), write_csv(tmp_path / "b.csv", rows(25))
    task = {"name": "thirds", "train": train, "validation": validation}
    changes = {"tasks": [task], "models": [str(plain_model)], "methods": ["component-clip"]}
    recipe = {"learning_rate": 1e-3, "batch_size": 6}
    one = job_of(make_plan(**changes, training=recipe))
    three = job_of(make_plan(**changes, training=recipe, resources={"processes_per_run": 3}))
    theirs, steps, largest = launch(3, _shared.proved, three)
    assert (steps, largest) == (10, 0.5)  # of the two rows of the new head; less of all others
    assert_alike(execute(one.spec, one.task, model=one.model), theirs)


@pytest.mark.slow
@pytest.mark.matrix
def test_dropout_is_drawn_by_each_and_every_time_alike(make_plan: MakePlan) -> None:
    job = job_of(make_plan(methods=["full"], resources=TWO))
    alone = job_of(make_plan(methods=["full"]))
    one, other = execute_job(job, lambda: False), execute_job(job, lambda: False)
    assert curve(one) == curve(other)
    assert one.tables["predictions"].equals(other.tables["predictions"])
    assert curve(one) != pytest.approx(curve(execute(alone.spec, alone.task, model=alone.model)), rel=1e-3)


@pytest.mark.slow
@pytest.mark.matrix
def test_a_study_runs_in_slots_of_two_processes(make_plan: MakePlan, tmp_path: Path) -> None:
    before = children()
    plan = make_plan(seeds=1, resources=TWO)
    study = Study(plan, StudyFolder(tmp_path / "study"))
    runs = study.run(LocalEngine(workers=1, resources=plan.resources))
    assert [(standing(run), run.attempts, run.spec.processes) for run in runs] == [("done", 1, 2)] * 2
    assert {run.outcome["provenance"]["processes"] for run in runs} == {2}
    assert open_study(study.folder.path)[1] == runs
    assert gone(lambda: children(besides=before))
    engine = InlineEngine()
    assert study.run(engine) == runs
    assert engine.ran == []


@pytest.mark.slow
@pytest.mark.matrix
def test_a_run_that_diverges_is_a_result(make_plan: MakePlan) -> None:
    result = execute_job(job_of(make_plan(resources=TWO, training={"learning_rate": 1e30})), lambda: False)
    assert result.diverged
    assert result.outcome["scores"] == {"validation": None}


@pytest.mark.slow
@pytest.mark.matrix
def test_data_that_is_no_multiple_of_the_batch_is_filled_up(make_plan: MakePlan, tmp_path: Path) -> None:
    train, validation = write_csv(tmp_path / "a.csv", rows(35)), write_csv(tmp_path / "b.csv", rows(21))
    task = {"name": "odd", "train": train, "validation": validation}
    result = execute_job(job_of(make_plan(tasks=[task], resources=TWO)), lambda: False)
    assert result.outcome["steps"] == 10
    assert result.tables["predictions"]["example"].to_pylist() == list(range(21))
    assert result.tables["predictions"]["label"].to_pylist() == [int(label) for _, label in rows(21)]


@pytest.mark.slow
@pytest.mark.matrix
def test_the_model_that_is_kept_is_whole(make_plan: MakePlan, plain_model: Path, tmp_path: Path) -> None:
    plan = make_plan(methods=["component-clip"], seeds=[7], models=[str(plain_model)], resources=TWO)
    outcome = finetune_one(plan, tmp_path / "out")
    assert not outcome["diverged"]
    assert outcome["spec"]["processes"] == 2 if "spec" in outcome else True
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert type(model).__name__ == "BertForSequenceClassification"
    with torch.no_grad():
        logits = model(**tokenizer([text for text, _ in rows(24)], padding=True, return_tensors="pt")).logits
    stored = pyarrow.parquet.read_table(tmp_path / "out" / "predictions.parquet")["logits"].to_pylist()
    np.testing.assert_allclose(logits.numpy(), stored, atol=1e-5)


@pytest.mark.slow
@pytest.mark.matrix
def test_a_few_steps_tell_what_it_takes(make_plan: MakePlan) -> None:
    found = calibrate(job_of(make_plan(resources=TWO)))
    assert found.step_seconds > 0
    assert found.memory > 0


def ranks(scratch: Path, before: set[int]) -> list[int]:
    """Return the processes that train, once they do."""
    deadline = time.monotonic() + 120
    while len([path for path in scratch.glob("evenkeel-*") if "ranks" not in path.name]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    found = children(besides=before)
    return [one for one in found if not (children(of=one) & found)]  # those that started no other


LONG = {"epochs": 100_000.0, "record_every": 1_000_000}


@pytest.mark.slow
@pytest.mark.matrix
def test_a_killed_process_loses_the_run_which_is_tried_again(
    make_plan: MakePlan, tmp_path: Path, scratch: Path
) -> None:
    before, events = children(), list[str]()
    plan = make_plan(methods=["full"], seeds=1, training={"epochs": 40.0}, resources=TWO)
    study = Study(plan, StudyFolder(tmp_path / "study"))

    def kill() -> None:
        os.kill(ranks(scratch, before)[0], signal.SIGKILL)

    def seen(report: Report) -> None:
        events.append(report.event)
        if events == ["started"]:
            threading.Thread(target=kill).start()

    (run,) = study.run(LocalEngine(workers=1, resources=plan.resources), on_report=seen)
    assert events == ["started", "lost", "started", "ended"]
    assert (standing(run), run.attempts) == ("done", 2)
    assert gone(lambda: children(besides=before))


@pytest.mark.slow
def test_closing_ends_every_process(make_plan: MakePlan, scratch: Path) -> None:
    before = children()
    job = job_of(make_plan(methods=["full"], training=LONG, resources=TWO))
    with closing(LocalEngine(workers=1).run([job])) as reports:  # type: ignore[type-var]
        assert next(reports).event == "started"
        assert len(ranks(scratch, before)) == 2
    assert gone(lambda: children(besides=before))


@pytest.mark.slow
@pytest.mark.matrix
def test_a_killed_worker_takes_its_processes_along(make_plan: MakePlan, scratch: Path) -> None:
    before = children()
    job = job_of(make_plan(methods=["full"], training=LONG, resources=TWO))
    with closing(LocalEngine(workers=1).run([job])) as reports:  # type: ignore[type-var]
        assert next(reports).event == "started"
        two = ranks(scratch, before)
        (worker,) = children(besides=before) - set(two)
        os.kill(worker, signal.SIGKILL)
        report = next(reports)
        assert (report.event, report.traceback) == (
            "lost", "its process was ended by SIGKILL (no memory left on this machine?)"
        )  # fmt: skip
        assert gone(two)


@pytest.mark.slow
@pytest.mark.matrix
def test_a_killed_driver_takes_everything_along(make_plan: MakePlan, tmp_path: Path, scratch: Path) -> None:
    before, plan = children(), make_plan(methods=["full"], seeds=1, training=LONG, resources=TWO)
    (tmp_path / "plan.json").write_text(plan.model_dump_json(), encoding="utf-8")
    command = [sys.executable, _drive_study.__file__, tmp_path / "plan.json", tmp_path / "study", "1"]
    driver = subprocess.Popen(list(map(str, command)))
    try:
        assert len(ranks(scratch, before)) == 2
        everybody = children(besides=before)
        assert len(everybody) == 4  # driver, worker, two processes of the run
    finally:
        driver.kill()
        driver.wait()
    assert gone(list(everybody))


@pytest.mark.parametrize(
    ("batch", "processes", "parts"), [(8, 2, 2), (8, 1, 2), (12, 3, 2), (4, 4, None), (6, 2, None)]
)
def test_half_a_batch_is_that_of_each_process(
    make_plan: MakePlan, batch: int, processes: int, parts: int | None
) -> None:
    job = job_of(make_plan(training={"batch_size": batch}, resources={"processes_per_run": processes}))
    found = smaller(job.spec)
    assert (None if found is None else found.overrides) == (
        None if parts is None else {"gradient_accumulation_steps": parts}
    )
