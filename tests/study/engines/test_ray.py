"""Ray clusters of several nodes on this machine; and everything that is done before a cluster is asked."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.study._small import InlineEngine, MakePlan, same_results, save_data, standing

from evenkeel.errors import EngineError, MissingExtraError, PlanError
from evenkeel.models import find_model
from evenkeel.study import Resources, RunResult, Study, StudyFolder
from evenkeel.study.engines import Job, RayEngine, Report, execute_job
from evenkeel.study.engines import ray as engine_module
from evenkeel.study.engines._cargo import Parcel, beacon, pack, unpack
from evenkeel.study.engines._ray_cluster import _on_node
from evenkeel.testing._processes import alive, children
from evenkeel.testing._scripted import Scripted, jobs_of


def told(reports: list[Report]) -> dict[int, list[str]]:
    events: dict[int, list[str]] = {}
    for report in reports:
        events.setdefault(report.job.spec.seed, []).append(report.event)
    return events


# --- before there is a cluster


@pytest.mark.parametrize("workers", [0, -3])
def test_there_must_be_a_worker(workers: int) -> None:
    with pytest.raises(PlanError, match=f"workers must be positive, but got {workers}; leave it out to fill"):
        RayEngine(workers=workers)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"needs Ray, which is not installed: pip install 'evenkeel\[ray\]'"):
        RayEngine()


@pytest.mark.parametrize(
    ("cpus", "gpus", "has", "room"),
    [
        (1.0, 0.0, {"CPU": 4.0}, 4),
        (0.5, 0.0, {"CPU": 4.0}, 8),
        (0.1, 0.0, {"CPU": 1.0}, 10),
        (3.0, 0.0, {"CPU": 8.0, "GPU": 2.0}, 2),
        (1.0, 1.0, {"CPU": 8.0, "GPU": 2.0}, 2),
        (1.0, 0.25, {"CPU": 16.0, "GPU": 2.0}, 8),
        (1.0, 0.4, {"CPU": 16.0, "GPU": 2.0}, 4),  # no run has a part of one GPU and a part of another
        (4.0, 0.25, {"CPU": 16.0, "GPU": 2.0}, 4),
        (1.0, 2.0, {"CPU": 16.0, "GPU": 3.0}, 1),
        (1.0, 1.0, {"CPU": 8.0}, 0),
        (9.0, 0.0, {"CPU": 8.0}, 0),
        (1.0, 0.0, {"memory": 1e9}, 0),
    ],
)
def test_a_node_holds_what_fits_whole(cpus: float, gpus: float, has: dict[str, float], room: int) -> None:
    assert _on_node(has, Resources(cpus=cpus, gpus=gpus)) == room


@pytest.mark.parametrize(("cpus", "threads"), [(0.25, 1), (1.0, 1), (1.9, 1), (4.0, 4)])
def test_a_run_has_a_thread_for_each_core(cpus: float, threads: int) -> None:
    assert Resources(cpus=cpus).threads == threads


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "there is no Ray cluster to be reached at '127.0.0.1:1' .*refused.*; start one by ray start"),
        ("127.0.0.1:100000", "there is no Ray cluster to be reached at '127.0.0.1:100000'"),
        (
            "ray://head",
            "'ray://head' is no address of a Ray cluster's head; write host:port, as ray start --head tells",
        ),
        ("", "'' is no address"),
    ],
)
def test_a_cluster_that_is_not_there_is_told(address: str, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        list(RayEngine(address=address).run(jobs_of(1)))


# --- models that are sent


def test_a_model_arrives_as_it_was_and_once(small_model: Path, tmp_path: Path) -> None:
    model = find_model(str(small_model))
    (small_model / "pytorch_model.bin").write_bytes(b"a pickle")
    fetched: list[Parcel] = []

    def fetch() -> Parcel:
        fetched.append(pack(small_model))
        return fetched[-1]

    folders = {unpack(model.fingerprint, fetch, tmp_path / "cache") for _ in range(3)}
    (small_model / "pytorch_model.bin").unlink()
    (folder,) = folders
    assert len(fetched) == 1
    assert not (folder / "pytorch_model.bin").exists()
    found = find_model(str(folder))
    assert (found.name, found.fingerprint) == (model.name, model.fingerprint)


def test_no_name_in_a_parcel_leads_out_of_its_folder(tmp_path: Path) -> None:
    parcel = Parcel(
        name="../../model", files={"../../config.json": np.zeros(3, np.uint8), "empty": np.zeros(0, np.uint8)}
    )
    folder = unpack("0123", lambda: parcel, tmp_path / "cache")
    assert folder == tmp_path / "cache" / "0123" / "model"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "empty"]


def test_a_node_without_room_says_so(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    with pytest.raises(EngineError, match="the model cannot be kept on a node of the cluster, in .*make room there"):
        unpack("0123", lambda: Parcel(name="model", files={}), tmp_path / "cache")


def test_a_beacon_goes_out(tmp_path: Path) -> None:
    with beacon(tmp_path) as one, beacon(tmp_path) as other:
        assert one != other
        assert one.exists()
    assert not one.exists()
    assert list(tmp_path.iterdir()) == []


# --- clusters


@pytest.fixture(scope="module")
def models_of_nodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def cluster(models_of_nodes: Path) -> Iterator[Any]:
    """A cluster whose head has no room for runs, and of two nodes with one core each."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(models_of_nodes))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            add_node(made)
    yield made
    made.shutdown()


def add_node(cluster: Any) -> Any:
    return cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)


@dataclass(frozen=True)
class Seen:
    """Tells what a process of the cluster sees."""

    seconds: float = 0.0

    def __call__(self, job: Job, stopping: Callable[[], bool]) -> RunResult:
        import ray

        time.sleep(self.seconds)
        node = ray.get_runtime_context().get_node_id()
        outcome = {"node": node, "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "threads": torch.get_num_threads()}
        return RunResult(diverged=False, outcome=outcome, tables={})


@pytest.mark.slow
@pytest.mark.matrix
def test_runs_are_spread_over_the_nodes(cluster: Any) -> None:
    engine = RayEngine(address=cluster.address, work=Seen(seconds=0.5))
    outcomes = [report.result.outcome for report in engine.run(jobs_of(6)) if report.result]
    assert engine.packing == 2
    assert len({outcome["node"] for outcome in outcomes}) == 2
    assert {outcome["gpus"] for outcome in outcomes} == {""}  # what was not asked for is not seen
    assert {outcome["threads"] for outcome in outcomes} == {1}


@pytest.mark.slow
@pytest.mark.matrix
def test_shares_of_a_core_let_more_runs_in(cluster: Any) -> None:
    engine = RayEngine(address=cluster.address, resources=Resources(cpus=0.5), work=Seen())
    assert told(list(engine.run(jobs_of(4)))) == {seed: ["started", "ended"] for seed in range(4)}
    assert engine.packing == 4


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("resources", [Resources(cpus=2), Resources(gpus=1)])
def test_a_run_that_no_node_holds_is_refused(cluster: Any, resources: Resources) -> None:
    engine = RayEngine(address=cluster.address, resources=resources, work=Seen())
    with pytest.raises(
        EngineError, match="no node of the Ray cluster has room for a run of . cpus and . gpus; ask for"
    ):
        list(engine.run(jobs_of(1)))


@pytest.mark.slow
@pytest.mark.matrix
def test_nodes_of_another_version_are_refused(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evenkeel.__version__", "99.0")
    with pytest.raises(EngineError, match="starts no process for runs .*a node has evenkeel .*, and the driver 99.0"):
        list(RayEngine(address=cluster.address, work=Seen()).run(jobs_of(1)))


@pytest.mark.slow
@pytest.mark.matrix
def test_a_connection_of_somebody_elses_is_left_as_it_is(cluster: Any) -> None:
    import ray

    ray.init(address=cluster.address, log_to_driver=False)
    try:
        assert told(list(RayEngine(address=cluster.address, work=Seen()).run(jobs_of(1)))) == {0: ["started", "ended"]}
        assert ray.is_initialized()
    finally:
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.matrix
def test_the_clusters_results_are_those_of_this_process(cluster: Any, make_plan: MakePlan, tmp_path: Path) -> None:
    there, here = (Study(make_plan(), StudyFolder(tmp_path / name)) for name in ("there", "here"))
    theirs, ours = there.run(RayEngine(address=cluster.address)), here.run(InlineEngine())
    assert [(standing(run), run.attempts) for run in theirs] == [("done", 1)] * 4
    assert {run.outcome["provenance"]["threads"] for run in theirs} == {1}
    if {run.outcome["provenance"]["threads"] for run in ours} == {1}:  # else sums are taken in another order here
        assert same_results(here.folder, there.folder, ours, theirs)
    assert [run.outcome["scores"] for run in ours] == [run.outcome["scores"] for run in theirs]


@pytest.mark.slow
@pytest.mark.matrix
def test_machines_that_see_no_files_are_sent_them(
    cluster: Any, make_plan: MakePlan, models_of_nodes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No beacon is where they look, so every process takes its machine for another one than the driver's."""
    monkeypatch.setattr(engine_module, "beacon", lambda folder: nullcontext(folder / "nowhere"))
    data = save_data(tmp_path)
    files = {"train": data / "train.csv", "validation": data / "validation.csv"}
    plan = make_plan(tasks=[{"name": "mine", **files}], methods=["full"], checkpoints={"every_steps": 1, "keep": True})
    study = Study(plan, StudyFolder(tmp_path / "study"))
    fingerprint = study.jobs()[0].spec.model_fingerprint
    for file in files.values():  # the driver has read them
        file.unlink()
    runs = study.run(RayEngine(address=cluster.address))
    assert [(standing(run), run.attempts) for run in runs] == [("done", 1)] * 2
    kept = models_of_nodes / "evenkeel" / "models" / fingerprint
    assert [path.name for path in kept.iterdir()] == ["small"]
    assert not any(study.folder.checkpoints(run.id).exists() for run in runs)  # they would lie on another machine


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("sees", [True, False])
def test_an_actor_launches_the_processes_of_a_run(
    cluster: Any, make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sees: bool
) -> None:
    if not sees:
        monkeypatch.setattr(engine_module, "beacon", lambda folder: nullcontext(folder / "nowhere"))
    plan = make_plan(seeds=1, resources={"processes_per_run": 2, "cpus": 0.5})
    study = Study(plan, StudyFolder(tmp_path / "study"))
    engine = RayEngine(address=cluster.address, resources=plan.resources)
    runs = study.run(engine)
    assert engine.packing == 2  # a core for each run, half for each process
    assert [(standing(run), run.attempts, run.outcome["provenance"]["processes"]) for run in runs] == [
        ("done", 1, 2)
    ] * 2
    job = study.jobs()[0]
    here = execute_job(job, lambda: False)
    assert runs[0].outcome["scores"] == here.outcome["scores"]
    too_many = make_plan(seeds=1, resources={"processes_per_run": 3})
    with pytest.raises(EngineError, match="no node of the Ray cluster has room for a run of 3 cpus and 0 gpus"):
        list(RayEngine(address=cluster.address, resources=too_many.resources).run(jobs_of(1)))


@pytest.mark.slow
@pytest.mark.matrix
def test_the_processes_of_a_run_end_with_their_actor(cluster: Any, make_plan: MakePlan, tmp_path: Path) -> None:
    resources = {"processes_per_run": 2, "cpus": 0.5}
    plan = make_plan(methods=["full"], seeds=1, training={"epochs": 100_000.0}, resources=resources)
    job, before = Study(plan, StudyFolder(tmp_path / "study")).jobs()[0], spawned()
    with closing(RayEngine(address=cluster.address, resources=plan.resources).run([job])) as reports:  # type: ignore[type-var]
        assert next(reports).event == "started"
        assert soon(lambda: len(spawned() - before) == 2, seconds=240)
        found = spawned() - before
    assert soon(lambda: not any(map(alive, found)), seconds=30)


def spawned() -> set[int]:
    """Return processes below this one that multiprocessing started, and not Ray."""
    found = set()
    for process in children():
        with suppress(OSError):
            if b"multiprocessing.spawn" in (Path("/proc") / str(process) / "cmdline").read_bytes():
                found.add(process)
    return found


@pytest.mark.slow
@pytest.mark.matrix
def test_machines_that_see_the_study_keep_checkpoints(cluster: Any, make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan(methods=["full"], seeds=1, checkpoints={"every_steps": 1, "keep": True})
    study = Study(plan, StudyFolder(tmp_path / "study"))
    (run,) = study.run(RayEngine(address=cluster.address))
    assert list(study.folder.checkpoints(run.id).glob("checkpoint-*"))


@pytest.mark.slow
@pytest.mark.matrix
def test_a_node_that_is_killed_in_mid_study_loses_nothing(cluster: Any, make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan(training={"epochs": 30.0})
    there, here = (Study(plan, StudyFolder(tmp_path / name)) for name in ("there", "here"))
    events: list[str] = []

    def kill_a_node(report: Report) -> None:
        events.append(report.event)
        if events == ["started", "started"]:
            cluster.remove_node(sorted(cluster.worker_nodes, key=id)[0], allow_graceful=False)
        elif report.event == "lost":
            add_node(cluster)

    theirs = there.run(RayEngine(address=cluster.address), on_report=kill_a_node)
    assert sorted(run.attempts for run in theirs) == [1, 1, 1, 2]
    assert Counter(events) == {"started": 5, "lost": 1, "ended": 4}
    ours = here.run(InlineEngine())
    if {run.outcome["provenance"]["threads"] for run in ours} == {1}:
        assert same_results(here.folder, there.folder, ours, theirs)


@pytest.mark.slow
@pytest.mark.matrix
def test_a_cluster_outlives_a_driver_that_is_killed(cluster: Any, tmp_path: Path) -> None:
    """The driver's processes end; the cluster is there for the next one."""
    script = Scripted(folder=tmp_path, acts={0: "wait", 1: "wait"})
    driver = multiprocessing.get_context("spawn").Process(target=drive, args=(cluster.address, script))
    driver.start()
    assert soon(lambda: len(script.begun()) == 2, seconds=240)
    driver.kill()
    driver.join()
    assert soon(lambda: not any(map(alive, script.processes())), seconds=30)
    assert told(list(RayEngine(address=cluster.address, work=Seen()).run(jobs_of(1)))) == {0: ["started", "ended"]}


def soon(good: Callable[[], bool], *, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not good() and time.monotonic() < deadline:
        time.sleep(0.1)
    return good()


def drive(address: str, script: Scripted) -> None:
    for _ in RayEngine(address=address, work=script).run(jobs_of(2)):
        pass
