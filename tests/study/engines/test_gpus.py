"""Which run is on which GPU, with GPUs that are not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace

import joblib
import pytest
import torch

from evenkeel.errors import PlanError
from evenkeel.study import Resources, RunResult
from evenkeel.study.engines import Job, LocalEngine, RayEngine
from evenkeel.study.engines._gpus import VISIBLE, Gpus
from evenkeel.testing._scripted import jobs_of

GIGABYTE = 2**30


@pytest.fixture(autouse=True)
def _two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    memory = {0: 80 * GIGABYTE, 1: 40 * GIGABYTE}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda place: SimpleNamespace(total_memory=memory[place]))
    monkeypatch.setattr(joblib, "cpu_count", lambda: 64)


def test_each_gpu_gets_as_many_runs() -> None:
    gpus = Gpus(Resources(runs_per_gpu=2))
    taken: list[str | None] = []
    for _ in range(4):
        taken.append(gpus.fewest(taken))
    assert sorted(map(str, taken)) == ["0", "0", "1", "1"]
    assert gpus.fewest(["0", "0", "1"]) == "1"


@pytest.mark.parametrize(
    ("resources", "packing"),
    [({}, 2), ({"runs_per_gpu": 3}, 6), ({"gpus": 0.25}, 8), ({"gpus": 1}, 2), ({"gpus": 0}, 64),
     ({"runs_per_gpu": "auto"}, 2), ({"runs_per_gpu": 100}, 64), ({"runs_per_gpu": 10, "cpus": 8}, 8)],
    ids=str,
)  # fmt: skip
def test_so_many_run_at_a_time(resources: dict[str, float], packing: int) -> None:
    assert LocalEngine(resources=Resources(**resources)).packing == packing


@pytest.mark.parametrize(("there", "names"), [(2, ["0,1"]), (3, ["0,1"]), (4, ["0,1", "2,3"])])
def test_the_processes_of_a_run_have_a_gpu_each(monkeypatch: pytest.MonkeyPatch, there: int, names: list[str]) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    resources = Resources(processes_per_run=2, cpus=4)
    assert Gpus(resources).names == names
    assert LocalEngine(resources=resources).packing == len(names)


def test_a_run_with_more_processes_than_gpus_is_refused() -> None:
    with pytest.raises(PlanError, match="each of the 3 processes of a run has a GPU to itself, and there are 2 here"):
        LocalEngine(resources=Resources(processes_per_run=3))
    assert LocalEngine(resources=Resources(processes_per_run=3, gpus=0)).packing == 64 // 3


def test_those_that_this_process_may_use_keep_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "5,GPU-8a2c")
    assert Gpus(Resources()).names == ["5", "GPU-8a2c"]


def test_as_many_share_one_as_the_largest_run_fits_in() -> None:
    gpus = Gpus(Resources(runs_per_gpu="auto"))
    assert gpus.learn({"host": 10 * GIGABYTE}) is False  # of a run on the CPU nothing is learnt
    assert gpus.learn({"device_reserved": 5 * GIGABYTE}) is True
    assert gpus.per_gpu == int(0.9 * 40 / (5 + 600 / 1024)) == 6
    assert gpus.learn({"device_reserved": 2 * GIGABYTE}) is False  # there is a larger one
    assert gpus.learn({"device_reserved": 100 * GIGABYTE}) is True
    assert gpus.per_gpu == 1
    fixed = Gpus(Resources(runs_per_gpu=2))
    assert fixed.learn({"device_reserved": GIGABYTE}) is False


def where(job: Job, stopping: Callable[[], bool]) -> RunResult:
    """Tell which GPU the process sees, and claim to have taken much of it."""
    outcome = {"sees": os.environ.get(VISIBLE), "peak_memory": {"device_reserved": 30 * GIGABYTE}}
    return RunResult(diverged=False, outcome=outcome, tables={})


@pytest.mark.parametrize(
    ("resources", "seen"),
    [({}, ["0", "1"]), pytest.param({"gpus": 0}, [""], marks=pytest.mark.slow)],
    ids=str,
)
def test_a_process_sees_its_own_gpu_alone(resources: dict[str, float], seen: list[str]) -> None:
    engine = LocalEngine(resources=Resources(**resources), work=where, workers=len(seen))
    reports = [report for report in engine.run(jobs_of(12)) if report.result]
    assert sorted({report.result.outcome["sees"] for report in reports if report.result}) == seen
    assert engine.packing == len(seen)  # so many were asked for


@pytest.mark.slow
def test_an_engine_learns_from_its_runs_until_memory_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # processes take seconds to start
    engine = LocalEngine(resources=Resources(runs_per_gpu="auto"), work=where)
    assert engine.packing == 1
    list(engine.run(jobs_of(1)))
    assert engine.packing == (learnt := int(0.9 * 80 / (30 + 600 / 1024)))
    engine.halve()
    list(engine.run(jobs_of(1)))
    assert engine.packing == learnt // 2


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(PlanError, match="gives each run one GPU, and 2 were asked for"):
        LocalEngine(resources=Resources(gpus=2))
    with pytest.raises(PlanError, match="auto is measured by the local engine"):
        RayEngine(resources=Resources(runs_per_gpu="auto"))
    with pytest.raises(ValueError, match="gpus and runs_per_gpu both say"):
        Resources(gpus=0.5, runs_per_gpu=2)
