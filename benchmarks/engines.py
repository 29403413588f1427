"""What a study costs beside its runs: runs that do nothing, through plan, engine and store.

    python benchmarks/engines.py drive [--runs 1000] [--engines inline,local,ray] [--workers 2] [--profile]
    python benchmarks/engines.py store [--runs 100000]   # writes a second into a store that holds so many runs

A run that does nothing returns at once what a run on RTE with a MiniLM would: an outcome, and the tables ``log``,
``telemetry`` and ``predictions`` (with ``--tables none``, none). ``inline`` has no engine: the driver's process makes
the results itself, and all that is left is the driver and what it writes. A rate is runs / seconds from the first
record to the last; making the jobs, and starting processes, are told apart.

Every write waits for the disk, so the disk counts: the study is made in ``--folder``, or in the folder for temporary
files. ``disk`` tells how many times a second a file of 4 KiB can be written there and synchronised.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import platform
import pstats
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from evenkeel.study import Plan, RunResult, Store, Study, StudyFolder
from evenkeel.study.engines import Engine, Job, LocalEngine, RayEngine, Report, Work, report_of, work

METHODS = ["full", "component-clip", "mixout", "llrd", "reinit"]
COMPONENTS, RECORDS, EXAMPLES, POINTS = 105, 47, 277, 60  # of a MiniLM on RTE


def tables() -> dict[str, pa.Table]:
    """Return tables as large as a run leaves them."""
    drawn = np.random.default_rng(0)
    rows = COMPONENTS * RECORDS
    norms = {
        "step": pa.array(np.repeat(np.arange(RECORDS), COMPONENTS), pa.int32()),
        "component": pa.array([f"layer.{row % COMPONENTS // 16}.query.weight" for row in range(rows)]),
        "layer": pa.array([row % COMPONENTS // 16 for row in range(rows)], pa.int16()),
        "norm": pa.array(drawn.random(rows, np.float32)),
    }
    predictions = {
        "part": pa.array(["validation"] * EXAMPLES),
        "example": pa.array(range(EXAMPLES), pa.int32()),
        "label": pa.array([row % 2 for row in range(EXAMPLES)], pa.int32()),
        "prediction": pa.array([row % 2 for row in range(EXAMPLES)], pa.int32()),
        "logits": pa.array(drawn.random((EXAMPLES, 2)).tolist(), pa.list_(pa.float32())),
    }
    log = {"step": pa.array(range(POINTS), pa.int32()), "loss": pa.array(drawn.random(POINTS))}
    return {"log": pa.table(log), "telemetry": pa.table(norms), "predictions": pa.table(predictions)}


OUTCOME = {
    "metric": "matthews", "classes": ["0", "1"], "scores": {"validation": 0.5}, "majority": {"validation": 0.0},
    "failed": False, "failed_by_majority": False, "constant": False, "p_value": 0.001, "steps": 468,
    "wall_seconds": 0.0, "cpu_seconds": 0.0, "peak_memory": {"host": 1},
    "provenance": {"versions": {"evenkeel": "0", "torch": "0"}, "python": "3", "device": "cpu", "threads": 1},
}  # fmt: skip


@dataclass(frozen=True)
class Nothing:
    """A run that does nothing."""

    tables: bool

    def __call__(self, job: Job, stopping: Callable[[], bool]) -> RunResult:
        """Return what was made before."""
        global _made
        if _made is None:
            _made = tables() if self.tables else {}
        return RunResult(diverged=False, outcome=OUTCOME, tables=_made)


_made: dict[str, pa.Table] | None = None


class Inline(Engine):
    """No engine."""

    def __init__(self, by: Work) -> None:
        """Do ``by`` in this process."""
        self._by = by

    def run(self, jobs: Sequence[Job]) -> Iterator[Report]:
        """Report at once."""
        for job in jobs:
            yield Report(job=job, event="started")
            yield report_of(job, work(job, by=self._by))


def drive(arguments: argparse.Namespace, scratch: Path) -> None:
    """Run whole studies of runs that do nothing."""
    by = Nothing(tables=arguments.tables == "some")
    engines: dict[str, Callable[[], Engine]] = {
        "inline": lambda: Inline(by),
        "local": lambda: LocalEngine(workers=arguments.workers, work=by),
        "ray": lambda: RayEngine(workers=arguments.workers, work=by),
    }
    print("| engine | runs | seconds until the first record | runs a second | jobs made a second | store opened, s |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in arguments.engines.split(","):
        for runs in map(int, arguments.runs.split(",")):
            content = {"tasks": ["grammar/acceptability"], "methods": METHODS, "seeds": runs // len(METHODS)}
            study = Study(Plan.checked(content, where="the benchmark"), StudyFolder(scratch / f"{name}-{runs}"))
            began = time.perf_counter()
            study.jobs()
            made = time.perf_counter()
            moments: list[float] = []
            profile = cProfile.Profile() if arguments.profile else None

            def listen(report: Report, moments: list[float] = moments) -> None:
                if report.event == "ended":
                    moments.append(time.perf_counter())

            with profile or nullcontext():
                study.run(engines[name](), on_report=listen)
            again = time.perf_counter()
            with closing(Store.reading(study.folder.store)) as store:
                unfinished = [run for run in store.runs() if not run.finished]
            if unfinished:
                raise SystemExit(f"{len(unfinished)} runs have no result, such as {unfinished[0]}")
            opened = time.perf_counter() - again
            rate = (runs - 1) / (moments[-1] - moments[0])
            seconds = f"{moments[0] - made:.1f} | {rate:.0f} | {runs / (made - began):.0f} | {opened:.2f}"
            print(f"| {name} | {runs:,} | {seconds} |", flush=True)
            if profile:
                pstats.Stats(profile).sort_stats("tottime").print_stats(30)


def fill(arguments: argparse.Namespace, scratch: Path) -> None:
    """Write into a store that holds many runs already."""
    runs = int(arguments.runs.split(",")[0])
    content = {"tasks": ["grammar/acceptability"], "methods": METHODS, "seeds": runs // len(METHODS)}
    plan = Plan.checked(content, where="the benchmark")
    jobs = Study(plan, StudyFolder(scratch)).jobs()
    names, path = [job.spec.id for job in jobs[:1000]], scratch / "study.sqlite"
    with closing(Store(path)) as store:
        began = time.perf_counter()
        store.save_plan(plan, [job.spec for job in jobs])
        print(f"{runs:,} runs queued in {time.perf_counter() - began:.1f} s")
        write(store, names, "empty of results")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE run SET status = 'done', attempts = 1, outcome = ?", (json.dumps(OUTCOME),))
    with closing(Store(path)) as store:
        write(store, names, "full of results")
        began = time.perf_counter()
        store.runs()
        print(f"all of them read in {time.perf_counter() - began:.1f} s")
    print(f"file: {path.stat().st_size / 2**20:.0f} MiB")


def write(store: Store, names: Sequence[str], moment: str) -> None:
    """Record the beginning and the end of runs."""
    began = time.perf_counter()
    for name in names:
        store.start(name)
        store.finish(name, "done", outcome=OUTCOME)
    seconds = time.perf_counter() - began
    print(f"{moment}: {2 * len(names) / seconds:.0f} writes a second, {len(names) / seconds:.0f} runs a second")


def syncs(folder: Path) -> float:
    """Return how often a second a small file is written and synchronised."""
    path, began, count = folder / "probe", time.perf_counter(), 0
    while time.perf_counter() - began < 1.0:
        with path.open("wb") as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
        count += 1
    path.unlink()
    return count


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["drive", "store"])
    parser.add_argument("--runs", default=None, help="how many; several by commas for drive")
    parser.add_argument("--engines", default="inline,local,ray")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tables", choices=["some", "none"], default="some")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    arguments.runs = arguments.runs or ("1000" if arguments.what == "drive" else "100000")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        print(f"{machine}; disk: {syncs(Path(scratch)):.0f} a second")
        (drive if arguments.what == "drive" else fill)(arguments, Path(scratch))


if __name__ == "__main__":
    main()
