"""kill -9 of everything, at random moments: nothing is lost, nothing is done twice, every number is the same."""

from __future__ import annotations

import itertools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import deque
from contextlib import closing
from pathlib import Path

import pytest
from tests.study._small import MakePlan, same_results

from evenkeel.study import Plan, RunRecord, Store, Study, StudyFolder
from evenkeel.study.engines import LocalEngine
from evenkeel.testing._processes import alive

KILLS = 20
WORKERS = 2
LONGEST_LIFE = 9.0  # seconds; a driver needs about half of it until its runs train
SCRIPT = Path(__file__).with_name("_drive_study.py")


def children(pid: int) -> list[int]:
    """Return the workers of a driver, without multiprocessing's tracker."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return []
    return [int(child) for child in found if b"spawn_main" in command(int(child))]


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


def all_end(pids: list[int], *, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not any(map(alive, pids))


def begin(plan: Path, folder: StudyFolder) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(SCRIPT), str(plan), str(folder.path), str(WORKERS)]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finished(folder: StudyFolder) -> dict[str, RunRecord]:
    """Return the runs with a result, after a look at the file's health."""
    if not folder.store.is_file():
        return {}
    with closing(sqlite3.connect(folder.store)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with closing(Store.reading(folder.store)) as store:
        return {run.id: run for run in store.runs() if run.finished}


def kill(what: str, process: subprocess.Popen[bytes], chance: random.Random) -> bool:
    """Kill what is named; False where it is not there."""
    workers = children(process.pid)
    if what == "worker":
        if not workers:
            return False
        os.kill(chance.choice(workers), signal.SIGKILL)
    elif what == "driver":
        process.kill()
        process.wait()
        assert all_end(workers)
    else:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return True


def disturbed(plan: Path, folder: StudyFolder, kills: deque[str], chance: random.Random) -> None:
    """Run a study to its end, and take kills from the queue all the while."""
    known: dict[str, RunRecord] = {}
    process = begin(plan, folder)
    while process.poll() is None or process.returncode:
        deadline = time.monotonic() + chance.uniform(0, LONGEST_LIFE)
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        if kills and process.poll() is None and kill(kills[0], process, chance):
            kills.popleft()
        now = finished(folder)
        assert all(now[run].attempts == before.attempts for run, before in known.items())  # never run again
        known = now
        if process.poll():  # it was killed: the same command goes on
            process = begin(plan, folder)


@pytest.fixture(scope="module")
def plan(make_plan: MakePlan) -> Plan:
    return make_plan(seeds=6, training={"epochs": 50.0}, checkpoints={"every_steps": 30})


@pytest.mark.slow
@pytest.mark.matrix
def test_twenty_kills_change_nothing(plan: Plan, tmp_path: Path) -> None:
    quiet = StudyFolder(tmp_path / "quiet")
    ours = Study(plan, quiet).run(LocalEngine(workers=WORKERS))
    assert all(run.finished for run in ours)

    chance = random.Random(20)
    order = ["worker"] * 7 + ["driver"] * 7 + ["group"] * 6
    chance.shuffle(order)
    assert len(order) == KILLS
    file = tmp_path / "plan.json"
    file.write_text(plan.model_dump_json(), encoding="utf-8")
    kills = deque(order)
    for number in itertools.count():
        folder = StudyFolder(tmp_path / f"disturbed-{number}")
        disturbed(file, folder, kills, chance)
        with closing(Store.reading(folder.store)) as store:
            theirs = store.runs()
        assert same_results(quiet, folder, ours, theirs)
        assert sorted(path.name for path in folder.path.iterdir() if path.name != ".lock") == ["runs", "study.sqlite"]
        if not kills:
            break
