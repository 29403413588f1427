"""Jobs that act out a script, for engines to be tested with: no training, and everything that can go wrong."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import pyarrow as pa

from evenkeel.study import RunResult, RunSpec, TaskPlan, Training
from evenkeel.study.engines import Job, RunStopped

__all__ = ["FEW", "MUCH", "Act", "Scripted", "jobs_of", "result_of"]

Act = Literal[
    "nothing",
    "pause",
    "wait",
    "wait-for-company",
    "raise",
    "raise-what-cannot-be-sent",
    "run-out-of-memory",
    "be-killed",
    "exit",
    "return-much",
    "return-what-cannot-be-sent",
    "return-what-cannot-be-read",
]

_TICK_SECONDS, _PAUSE_SECONDS, _LONGEST_SECONDS = 0.02, 0.3, 120.0
FEW, MUCH = 100, 2**19  # rows: some kilobytes, and some megabytes, more than any pipe or inline answer holds
_TASK = "grammar/acceptability"


class _StrangeError(Exception):
    """An exception that cannot be made again from its arguments."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")
        self.lock = threading.Lock()


class _Unreadable:
    """Something that can be pickled and not be read back."""

    def __reduce__(self) -> Any:
        return _refuse_to_be, ()


def _refuse_to_be() -> None:
    raise ValueError("this cannot be read back")


def jobs_of(count: int) -> list[Job]:
    """Return jobs whose seeds count from 0; an engine that really executes them trains the embedded model.

    Args:
        count: how many.

    Returns:
        The jobs.
    """
    return [
        Job(
            spec=RunSpec(
                task=_TASK, metric="matthews", data_fingerprint="0" * 16, model="tiny", model_fingerprint="0" * 16,
                method="full", seed=seed, training=Training(),
            ),
            task=TaskPlan(name=_TASK),
            model="tiny",
        )
        for seed in range(count)
    ]  # fmt: skip


def result_of(seed: int, *, rows: int = FEW) -> RunResult:
    """Return a result with everything that must come through whole.

    Args:
        seed: what its numbers are drawn by.
        rows: how many its table has.

    Returns:
        The result.
    """
    drawn = np.random.default_rng(seed).standard_normal(rows)
    drawn[:3] = np.nan, -0.0, 5e-324
    columns = {
        "step": pa.array(range(rows), pa.int32()),
        "norm": pa.array(drawn.astype(np.float32)),
        "loss": pa.array(drawn),
        "path": pa.array([f"layer.{row % 3}.é" for row in range(rows)]).dictionary_encode(),
        "logits": pa.array([[row, -row] if row % 2 else None for row in range(rows)], pa.list_(pa.int32())),
    }
    outcome = {"scores": {"validation": float(drawn[3]), "test": None}, "seed": seed, "words": ["é", "", "\n"]}
    tables = {"log": pa.table(columns), "telemetry": pa.table({"norm": pa.array([], pa.float32())})}
    return RunResult(diverged=bool(seed % 2), outcome=outcome, tables=tables)


@final
@dataclass(frozen=True, kw_only=True)
class Scripted:
    """What is done with a job instead of training: what the script says for its seed.

    Every process notes in the folder that it began, so that tests know which processes there are.

    Attributes:
        folder: where notes are left; processes of the engine must see it.
        acts: what is done, by seed; jobs of other seeds do nothing.
    """

    folder: Path
    acts: Mapping[int, Act] = field(default_factory=dict)

    def __call__(self, job: Job, stopping: Callable[[], bool]) -> RunResult:
        """Act out the script."""
        seed, began = job.spec.seed, time.time_ns()
        self._note(f"{seed}-{os.getpid()}-{began}")
        act = self.acts.get(seed, "nothing")
        made = getattr(self, "_" + act.replace("-", "_"))(seed, stopping)
        self._note(f"ended-{seed}-{began}-{time.time_ns()}")
        return made or result_of(seed)

    def _note(self, name: str) -> None:
        (self.folder / name).touch()

    # --- what tests read

    def begun(self) -> list[int]:
        """Return the seeds of jobs that began, in the order of time; a job that began twice stands there twice."""
        notes = [path.name.split("-") for path in self.folder.iterdir() if path.name[0].isdigit()]
        return [int(seed) for _, seed, _ in sorted((int(began), seed, pid) for seed, pid, began in notes)]

    def processes(self) -> set[int]:
        """Return the ids of processes that ever began a job."""
        return {int(path.name.split("-")[1]) for path in self.folder.iterdir() if path.name[0].isdigit()}

    def most_at_a_time(self) -> int:
        """Return how many jobs that ended had been going on at one time."""
        spans = [path.name.split("-")[2:] for path in self.folder.glob("ended-*")]
        moments = sorted((int(moment), step) for span in spans for moment, step in zip(span, (1, -1), strict=True))
        going = most = 0
        for _, step in moments:
            going += step
            most = max(most, going)
        return most

    # --- what jobs do

    def _nothing(self, seed: int, stopping: Callable[[], bool]) -> None:
        pass

    def _raise(self, seed: int, stopping: Callable[[], bool]) -> None:
        raise ZeroDivisionError(f"job {seed} was told to raise")

    def _raise_what_cannot_be_sent(self, seed: int, stopping: Callable[[], bool]) -> None:
        raise _StrangeError(seed, seed)

    def _run_out_of_memory(self, seed: int, stopping: Callable[[], bool]) -> None:
        raise MemoryError(f"job {seed} was told to have no memory")

    def _be_killed(self, seed: int, stopping: Callable[[], bool]) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(_LONGEST_SECONDS)

    def _exit(self, seed: int, stopping: Callable[[], bool]) -> None:
        os._exit(3)

    def _pause(self, seed: int, stopping: Callable[[], bool]) -> None:
        time.sleep(_PAUSE_SECONDS)

    def _wait(self, seed: int, stopping: Callable[[], bool]) -> None:
        """Wait to be stopped, as a run does that keeps checkpoints."""
        self._until(stopping)
        raise RunStopped(f"job {seed} stopped")

    def _wait_for_company(self, seed: int, stopping: Callable[[], bool]) -> None:
        """Wait until another job has begun as well."""
        self._until(lambda: len(set(self.begun())) > 1)

    def _until(self, good: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _LONGEST_SECONDS
        while not good():
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing came in {_LONGEST_SECONDS} seconds")
            time.sleep(_TICK_SECONDS)

    def _return_much(self, seed: int, stopping: Callable[[], bool]) -> RunResult:
        return result_of(seed, rows=MUCH)

    def _return_what_cannot_be_sent(self, seed: int, stopping: Callable[[], bool]) -> RunResult:
        return RunResult(diverged=False, outcome={"lock": threading.Lock()}, tables={})

    def _return_what_cannot_be_read(self, seed: int, stopping: Callable[[], bool]) -> RunResult:
        return RunResult(diverged=False, outcome={"strange": _Unreadable()}, tables={})
