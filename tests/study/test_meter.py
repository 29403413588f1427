from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

import pytest
from tests.study._small import MakePlan

from evenkeel.study import Study, StudyFolder, _meter, execute
from evenkeel.study._meter import Meter, Spent

MEGABYTE = 2**20


def test_what_is_measured_is_what_passed() -> None:
    meter, ends = Meter(), time.process_time() + 0.05
    while time.process_time() < ends:
        pass
    spent = meter.spent()
    assert spent.cpu_seconds >= 0.05
    assert spent.wall_seconds >= 0.05
    assert meter.spent().wall_seconds >= spent.wall_seconds


def test_the_peak_is_that_of_this_run_and_not_of_one_before() -> None:
    kept = bytearray(os.urandom(1)) * (200 * MEGABYTE)
    before = Meter().spent().peak_memory["host"]
    del kept
    small = Meter().spent().peak_memory["host"]
    assert before - small > 150 * MEGABYTE
    meter = Meter()
    kept = bytearray(os.urandom(1)) * (200 * MEGABYTE)
    del kept
    assert meter.spent().peak_memory["host"] - small > 150 * MEGABYTE  # although it is gone by now


def test_without_a_kernel_that_tells_it_is_the_peak_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_meter, "_STATUS", tmp_path / "none")
    monkeypatch.setattr(_meter, "_CLEAR", tmp_path)  # a folder: it cannot be written
    assert Meter().spent().peak_memory["host"] > 10 * MEGABYTE


def test_parts_are_joined() -> None:
    one = Spent(wall_seconds=1.0, cpu_seconds=2.0, peak_memory={"host": 5, "device": 7})
    other = Spent(wall_seconds=10.0, cpu_seconds=20.0, peak_memory={"host": 6})
    assert one + other == Spent(wall_seconds=11.0, cpu_seconds=22.0, peak_memory={"host": 6, "device": 7})
    assert Spent() + one == one


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_a_clock_that_is_set_changes_no_duration(
    make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    jumps = itertools.count(1)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump * next(jumps))
    job = Study(make_plan(), StudyFolder(Path("unused"))).jobs()[0]
    began = time.perf_counter()
    outcome = execute(job.spec, job.task, model=job.model).outcome
    assert 0 < outcome["wall_seconds"] <= time.perf_counter() - began + 0.001
    assert outcome["cpu_seconds"] > 0
    assert outcome["peak_memory"]["host"] > 10 * MEGABYTE
