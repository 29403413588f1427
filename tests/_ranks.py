"""Ranks of a process group on the CPU: started once, given many jobs, killed when they hang.

The server that ranks are forked from imports torch and transformers once, which would take seconds in every rank.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import functools
import logging
import multiprocessing
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

SECONDS = 120  # that a job may take; the slowest takes five on a quiet machine
GRACE = 2  # seconds for the other ranks once one has failed: they may wait for it for ever
PRELOAD = ["tests.clipping._jobs", "tests.optim._jobs", "torch.distributed.fsdp", "torch.distributed.tensor.parallel"]


class RankError(AssertionError):
    """A job failed on a rank, or a rank did not answer."""


def run(number: int, job: Callable[..., T], *args: Any) -> list[T]:
    """Return what ``job``, an importable function, returns on each of ``number`` ranks."""
    try:
        return _pool(number).run(job, args)
    except RankError:
        _pool.cache_clear()  # what is left of it may hang in a collective
        raise


def close() -> None:
    """End all ranks; the next job starts new ones."""
    for pool in list(_OPEN):
        pool.close()
    _pool.cache_clear()


@functools.cache
def _pool(number: int) -> _Ranks:
    return _Ranks(number)


_OPEN: set[_Ranks] = set()


class _Ranks:
    def __init__(self, number: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self._folder = tempfile.TemporaryDirectory(prefix="evenkeel-ranks-")
        folder = Path(self._folder.name)
        self._logs = [folder / f"{rank}.log" for rank in range(number)]
        self._processes, self._connections = [], []
        for rank, log in enumerate(self._logs):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, number, folder / "store", there, log), daemon=True)
            process.start()
            there.close()  # so that a rank's death is seen here
            self._processes.append(process)
            self._connections.append(here)
        atexit.register(self.close)
        _OPEN.add(self)

    def run(self, job: Callable[..., T], args: tuple[Any, ...]) -> list[T]:
        for connection in self._connections:
            with contextlib.suppress(BrokenPipeError):
                connection.send_bytes(pickle.dumps((job, args)))
        answers: dict[int, Any] = {}
        failures: dict[int, str] = {}
        end = time.monotonic() + SECONDS
        while len(answers) + len(failures) < len(self._connections):
            silent = [rank for rank in range(len(self._connections)) if rank not in answers and rank not in failures]
            ready = wait([self._connections[rank] for rank in silent], max(0.0, end - time.monotonic()))
            if not ready:
                failures |= {rank: self._last_words(rank) for rank in silent}
            for rank in silent:
                if self._connections[rank] in ready:
                    good, answer = _received(self._connections[rank])
                    (answers if good else failures)[rank] = answer
                    end = end if good else min(end, time.monotonic() + GRACE)
        if failures:
            self.close()
            told = "".join(f"\n--- rank {rank} of {len(self._logs)}\n{text}" for rank, text in sorted(failures.items()))
            raise RankError(f"{getattr(job, '__name__', job)} failed{told}")
        return [answers[rank] for rank in range(len(self._connections))]

    def _last_words(self, rank: int) -> str:
        process, log = self._processes[rank], self._logs[rank]
        process.terminate()  # faulthandler writes where it stood
        process.join(GRACE)
        process.kill()
        return "it did not answer, perhaps because another rank failed; it stood at\n" + log.read_text(encoding="utf-8")

    def close(self) -> None:
        atexit.unregister(self.close)
        _OPEN.discard(self)
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.send_bytes(pickle.dumps(None))
        for process in self._processes:
            process.join(GRACE)
            process.kill()
        self._folder.cleanup()


def _received(connection: Connection) -> tuple[bool, Any]:
    try:
        answer: tuple[bool, Any] = pickle.loads(connection.recv_bytes())  # noqa: S301
    except (EOFError, ConnectionError):
        return False, "the process died\n"
    return answer


def _serve(rank: int, number: int, store: Path, connection: Connection, log: Path) -> None:
    import signal

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)  # torch tells how to gather faster
    with log.open("w", encoding="utf-8") as words:
        faulthandler.register(signal.SIGTERM, file=words, chain=True)
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=number, timeout=timedelta(seconds=SECONDS)
        )
        while (task := pickle.loads(connection.recv_bytes())) is not None:  # noqa: S301
            job, args = task
            try:
                answer = True, job(*args)
            except BaseException:  # whatever it is, it is told where the job was given
                answer = False, traceback.format_exc()
            connection.send_bytes(pickle.dumps(answer))
        dist.destroy_process_group()
