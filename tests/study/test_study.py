from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import pytest
from tests._tiers import few
from tests.study._small import InlineEngine, MakePlan, rows, same_results, save_data, save_model, standing, write_csv

from evenkeel.errors import MethodError, ModelError, StoreError
from evenkeel.study import Plan, RunRecord, RunResult, Store, Study, StudyFolder, open_study
from evenkeel.study import _prepare as prepared_once
from evenkeel.study.engines import Engine, Job, Report


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return StudyFolder(tmp_path / "study")


Finished = tuple[StudyFolder, list[RunRecord]]


@pytest.fixture(scope="module")
def finished(make_plan: MakePlan, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """An undisturbed study of two methods and two seeds."""
    folder = StudyFolder(tmp_path_factory.mktemp("finished") / "study")
    return folder, Study(make_plan(), folder).run(InlineEngine())


def copied(finished: Finished, folder: StudyFolder) -> StudyFolder:
    shutil.copytree(finished[0].path, folder.path)
    return folder


def attempts(runs: Sequence[RunRecord]) -> list[tuple[str, int, str, int]]:
    return [(run.spec.method, run.spec.seed, standing(run), run.attempts) for run in runs]


# --- a study that goes well


def test_a_grid_is_run_in_order(finished: Finished) -> None:
    folder, runs = finished
    assert attempts(runs) == [
        ("full", 1, "done", 1),
        ("component-clip", 1, "done", 1),
        ("full", 2, "done", 1),
        ("component-clip", 2, "done", 1),
    ]
    plan, stored, opened = open_study(folder.path)
    assert stored == runs
    assert plan.methods == ("full", "component-clip")
    assert opened.path == folder.path
    assert all(folder.read_run(run.id, "predictions") is not None for run in runs)


def test_a_finished_study_runs_nothing_again(finished: Finished, folder: StudyFolder, make_plan: MakePlan) -> None:
    engine = InlineEngine()
    assert Study(make_plan(), copied(finished, folder)).run(engine) == finished[1]
    assert engine.ran == []


@pytest.mark.parametrize(
    ("larger", "new"),
    [
        ({"seeds": [1, 2, 3]}, [("full", 3), ("component-clip", 3)]),
        ({"seeds": [3, 2, 1], "methods": ["component-clip", "full"]}, [("component-clip", 3), ("full", 3)]),
        (
            {"methods": ["full", "component-clip", "gradual-unfreezing"]},
            [("gradual-unfreezing", seed) for seed in (1, 2)],
        ),
    ],
)
def test_only_what_was_added_is_run(
    finished: Finished, folder: StudyFolder, make_plan: MakePlan, larger: dict[str, Any], new: list[tuple[str, int]]
) -> None:
    engine = InlineEngine()
    runs = Study(make_plan(**larger), copied(finished, folder)).run(engine)
    assert [(job.spec.method, job.spec.seed) for job in engine.ran] == new
    assert {run.attempts for run in runs} == {1}
    assert [(run.spec.method, run.spec.seed) for run in runs] == [
        (run.method, run.seed) for run in make_plan(**larger).grid()
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": [1]}, r"a study with more seeds \(2\); seeds can be added and not taken away"),
        ({"methods": ["full"]}, r"a study with more methods \(component-clip\); .*name them all"),
        (
            {"training": {"learning_rate": 1e-3}},
            "another study: its training differ.*learning_rate 0.005 there, 0.001 now",
        ),
        ({"models": ["tiny"]}, "another study: its models differ.* there, tiny now.*--out"),
        ({"tasks": ["grammar/acceptability"]}, "its tasks differ.*small there, grammar/acceptability now"),
    ],
)
def test_a_folder_of_another_study_is_refused(
    finished: Finished, folder: StudyFolder, make_plan: MakePlan, changes: dict[str, Any], said: str
) -> None:
    engine = InlineEngine()
    before = copied(finished, folder).store.read_bytes()
    with pytest.raises(StoreError, match=said):
        Study(make_plan(**changes), folder).run(engine)
    assert engine.ran == []
    assert folder.store.read_bytes() == before


def forget() -> None:
    """Forget what this process read, as a new process would."""
    for cache in (prepared_once.load_data, prepared_once.locate_model, prepared_once.prepare):
        cache.cache_clear()


@pytest.mark.parametrize("changed", ["data", "model"])
def test_files_that_changed_are_no_longer_the_same_study(
    make_plan: MakePlan, folder: StudyFolder, tmp_path: Path, changed: str
) -> None:
    data, model = save_data(tmp_path), save_model(tmp_path / "model")
    task = {"name": "mine", "train": data / "train.csv", "validation": data / "validation.csv"}
    plan = make_plan(tasks=[task], models=[str(model)], methods=["full"], seeds=1)
    Study(plan, folder).run(InlineEngine())
    if changed == "data":
        write_csv(data / "train.csv", [*rows(32), ("the film was good", "1")])
    else:
        save_model(model, layers=3)
    forget()
    with pytest.raises(StoreError, match="another version of the files of task mine or model model, .*put them back"):
        Study(plan, folder).run(InlineEngine())


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"methods": ["full", "component-clpi"]}, MethodError, "unknown method 'component-clpi': did you mean"),
        ({"models": ["./none"]}, ModelError, "there is no folder './none'"),
    ],
)
def test_a_plan_that_cannot_be_makes_no_folder(
    folder: StudyFolder, make_plan: MakePlan, changes: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        Study(make_plan(**changes), folder).run(InlineEngine())
    assert not folder.path.exists()


def test_a_method_that_the_model_cannot_carry_is_refused_first(
    folder: StudyFolder, make_plan: MakePlan, tmp_path: Path
) -> None:
    shallow = save_model(tmp_path / "shallow", layers=1)
    with pytest.raises(MethodError, match="gradual-unfreezing needs a model of at least 2 blocks, but found 1"):
        Study(make_plan(models=[str(shallow)], methods=["gradual-unfreezing"]), folder).run(InlineEngine())


def test_a_second_driver_is_locked_out(finished: Finished, folder: StudyFolder, make_plan: MakePlan) -> None:
    copied(finished, folder)
    with folder.lock(), pytest.raises(StoreError, match="another process is working on the study"):
        Study(make_plan(), folder).run(InlineEngine())


# --- interruptions


@pytest.mark.parametrize(
    "stop_at",
    few([("started", 1), ("ended", 1), ("started", 2), ("ended", 3)], {("started", 2)}),
)
def test_an_interrupted_study_goes_on_without_repeating_anything(
    finished: Finished, folder: StudyFolder, make_plan: MakePlan, stop_at: tuple[str, int]
) -> None:
    seen: Counter[str] = Counter()

    def interrupt(report: Report) -> None:
        seen[report.event] += 1
        if (report.event, seen[report.event]) == stop_at:
            raise KeyboardInterrupt

    engine = InlineEngine()
    study = Study(make_plan(), folder)
    with pytest.raises(KeyboardInterrupt):
        study.run(engine, on_report=interrupt)
    assert engine.closed  # at once, not when somebody collects garbage
    assert Counter(standing(run) for run in open_study(folder.path)[1]) == Counter(
        done=seen["ended"], queued=4 - seen["ended"]
    )

    runs = study.run(engine)
    repeated = seen["started"] - seen["ended"]  # what was cut off in the middle
    assert len(engine.ran) == 4 + repeated
    assert sum(run.attempts for run in runs) == 4 + repeated
    assert {standing(run) for run in runs} == {"done"}
    assert same_results(folder, finished[0], runs, finished[1])


def test_a_driver_that_died_before_its_plan_was_saved_starts_anew(folder: StudyFolder, make_plan: MakePlan) -> None:
    folder.create()
    Store(folder.store).close()
    runs = Study(make_plan(methods=["full"], seeds=1), folder).run(InlineEngine())
    assert attempts(runs) == [("full", 1, "done", 1)]


def test_a_driver_that_was_killed_left_runs_running(
    finished: Finished, folder: StudyFolder, make_plan: MakePlan
) -> None:
    with closing(Store(copied(finished, folder).store)) as store:
        store.start(finished[1][2].id)
    engine = InlineEngine()
    runs = Study(make_plan(), folder).run(engine)
    assert [job.spec.id for job in engine.ran] == [finished[1][2].id]
    assert [run.attempts for run in runs] == [1, 1, 3, 1]
    assert same_results(folder, finished[0], runs, finished[1])


# --- runs that break


Fate = Literal["ended", "raised", "lost"]


class FatedEngine(Engine):
    """Runs nothing; decides what becomes of the jobs that are run together."""

    def __init__(self, decide: Callable[[Sequence[int]], Sequence[Fate]], result: RunResult) -> None:
        self.decide = decide
        self.result = result
        self.batches: list[list[int]] = []

    def run(self, jobs: Sequence[Job]) -> Iterator[Report]:
        self.batches.append([job.spec.seed for job in jobs])
        for job in jobs:
            yield Report(job=job, event="started")
        for job, fate in zip(jobs, self.decide(self.batches[-1]), strict=True):
            result = self.result if fate == "ended" else None
            yield Report(
                job=job, event=fate, result=result, traceback="Traceback: broken" if fate == "raised" else None
            )


@pytest.fixture
def fated(make_plan: MakePlan, folder: StudyFolder) -> Callable[..., tuple[list[RunRecord], FatedEngine]]:
    result = RunResult(diverged=False, outcome={"scores": {"validation": 0.5}}, tables={})

    def run(seeds: int, decide: Callable[[Sequence[int]], Sequence[Fate]]) -> tuple[list[RunRecord], FatedEngine]:
        engine = FatedEngine(decide, result)
        return Study(make_plan(methods=["full"], seeds=seeds), folder).run(engine), engine

    return run


Run = Callable[..., tuple[list[RunRecord], FatedEngine]]


def test_a_run_whose_process_dies_is_tried_again(fated: Run) -> None:
    deaths = iter([True, False])
    runs, engine = fated(2, lambda seeds: ["lost" if seed == 2 and next(deaths) else "ended" for seed in seeds])
    assert attempts(runs) == [("full", 1, "done", 1), ("full", 2, "done", 2)]
    assert engine.batches == [[1, 2], [2]]


def test_a_run_that_dies_three_times_is_given_up_and_takes_nobody_with_it(fated: Run) -> None:
    # seed 2 kills the pool: whatever runs beside it is lost too
    runs, engine = fated(3, lambda seeds: ["lost"] * len(seeds) if 2 in seeds else ["ended"] * len(seeds))
    assert attempts(runs) == [("full", 1, "done", 3), ("full", 2, "lost", 3), ("full", 3, "done", 3)]
    assert engine.batches == [[1, 2, 3], [1, 2, 3], [1], [2], [3]]


def test_a_run_that_raises_is_recorded_and_stops_nobody(fated: Run) -> None:
    runs, engine = fated(3, lambda seeds: ["raised" if seed == 2 else "ended" for seed in seeds])
    assert attempts(runs) == [("full", 1, "done", 1), ("full", 2, "error", 1), ("full", 3, "done", 1)]
    assert [run.error for run in runs] == [None, "Traceback: broken", None]
    assert engine.batches == [[1, 2, 3]]  # an error would come again: no second try in this start


@pytest.mark.parametrize("fate", ["raised", "lost"])
def test_broken_runs_are_tried_again_by_the_next_start(fated: Run, fate: Fate) -> None:
    fated(2, lambda seeds: [fate if seed == 2 else "ended" for seed in seeds])
    runs, engine = fated(2, lambda seeds: ["ended"] * len(seeds))
    assert engine.batches == [[2]]
    assert {standing(run) for run in runs} == {"done"}
    assert runs[1].error is None


def test_a_diverged_run_is_a_result(make_plan: MakePlan, folder: StudyFolder) -> None:
    plan: Plan = make_plan(methods=["full"], seeds=1, training={"learning_rate": 1e30})
    (run,) = Study(plan, folder).run(InlineEngine())
    assert (run.status, run.finished) == ("diverged", True)
    assert (run.outcome["failed"], run.outcome["failed_by_majority"]) == (True, True)
    assert folder.read_run(run.id, "log") is not None
    engine = InlineEngine()
    Study(plan, folder).run(engine)
    assert engine.ran == []
