"""A run in several processes: torchrun's own launcher, around whatever they are to do together."""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from evenkeel._process import how_it_ended, run_below
from evenkeel.errors import EngineError

__all__ = ["RAISED", "RankError", "RankLostError", "launch"]

T = TypeVar("T")

RAISED = 70  # exit code of a process that has told what it raised
_RANK = ("evenkeel.study.engines._rank", "serve")  # by name: it imports what this module must not
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)  # that the launcher answers
_HANDLED = "TORCHELASTIC_SIGNALS_TO_HANDLE"
_LOOK_SECONDS = 0.1


class RankError(EngineError):
    """One of the processes of a run raised an exception, which ended the others.

    Attributes:
        traceback: where and what; no path of the machine's owner.
        out_of_memory: whether there was no memory left.
    """

    def __init__(self, traceback: str, *, out_of_memory: bool) -> None:
        """Tell of the exception that came first."""
        super().__init__(traceback)
        self.traceback, self.out_of_memory = traceback, out_of_memory


class RankLostError(EngineError):
    """One of the processes of a run died, which ended the others."""


def launch(processes: int, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in several processes of this machine that find each other as torchrun's do.

    They end with this process, and as soon as one of them fails. Nothing is started again.

    Args:
        processes: how many.
        function: a function of a module; ``torch.distributed`` is not initialised when it is called, and the
            environment says how to.
        *arguments: what it is called with, in each process; they can be pickled.

    Returns:
        What it returned in rank 0.

    Raises:
        RankError: if it raised in a process.
        RankLostError: if a process died.
    """
    work = pickle.dumps((function, arguments))  # read once the process watches this one: it may have much to import
    stopped: signal.Signals | None = None
    with tempfile.TemporaryDirectory(prefix="evenkeel-ranks-") as scratch, _as_it_was():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",  # a port that is free
            local_addr="127.0.0.1",
            max_restarts=0,
            monitor_interval=_LOOK_SECONDS,
            logs_specs=DefaultLogsSpecs(log_dir=scratch),
        )
        try:
            found = elastic_launch(config, run_below)(os.getpid(), *_RANK, scratch, torch.get_num_threads(), work)
        except ChildFailedError as error:
            raise _told(error, Path(scratch)) from None
        except SignalException as error:
            stopped = error.sigval
    if stopped is not None:
        os.kill(os.getpid(), stopped)  # now that no process is left, what the signal does otherwise
        raise EngineError(f"the processes of a run were stopped by {stopped.name}")
    return cast(T, pickle.loads(found[0]))  # noqa: S301  what our own process made


def _told(error: ChildFailedError, scratch: Path) -> EngineError:
    """Say why the processes ended: what a process raised, or how it died."""
    rank, failure = error.get_first_failure()
    told = [json.loads(path.read_text(encoding="utf-8")) for path in scratch.glob("raised-*.json")]
    if failure.exitcode != RAISED or not told:
        return RankLostError(f"the process of rank {rank} {how_it_ended(failure.exitcode)}")
    # What others raise once one is gone comes later, and what they say of lost connections explains nothing.
    first = min(told, key=lambda one: (not one["out_of_memory"], one["time"]))
    return RankError(first["traceback"], out_of_memory=first["out_of_memory"])


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Keep the launcher's log quiet, and take its answers to signals back in the end."""
    ours = threading.current_thread() is threading.main_thread()  # elsewhere it leaves signals alone
    before = {number: signal.getsignal(number) for number in _SIGNALS} if ours else {}
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(level)
        os.environ.pop(_HANDLED, None)
        for number, handler in before.items():
            if handler is not None:  # None: one that was not set from Python, and cannot be set from there
                signal.signal(number, handler)
