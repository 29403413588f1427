"""One of the processes of a run."""

from __future__ import annotations

import json
import os
import pickle
import signal
import time
from multiprocessing.util import Finalize
from pathlib import Path

import torch.distributed as dist

from evenkeel.study._private import private_traceback
from evenkeel.study.engines._launch import RAISED
from evenkeel.study.engines._work import no_memory, settle

__all__ = ["serve"]

_GRACE_SECONDS = 1.0  # for the launcher to see who died first, before this process follows


def serve(scratch: str, threads: int, work: bytes) -> bytes | None:
    """Live the life of a rank; the launcher's environment says which.

    Args:
        scratch: a folder in which to tell what was raised.
        threads: how many this process has.
        work: the function that is to be called, and its arguments, pickled.

    Returns:
        What the function returned, pickled; None in other ranks than the first.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the launcher passes it on, and waits
    os.environ["OMP_NUM_THREADS"] = str(threads)  # else accelerate chooses
    settle(threads)
    try:
        function, arguments = pickle.loads(work)  # noqa: S301  of the process that started this one
        answer = pickle.dumps(function(*arguments))
    except Exception as error:
        _tell(error, Path(scratch))
        time.sleep(_GRACE_SECONDS)
        os._exit(RAISED)  # not in order: others may never answer again
    if dist.is_initialized():
        dist.destroy_process_group()
    Finalize(None, os._exit, args=(0,), exitpriority=-100)  # libraries complain of each other in an orderly end
    return answer if os.environ["RANK"] == "0" else None


def _tell(error: Exception, scratch: Path) -> None:
    said = {"time": time.time(), "traceback": private_traceback(error), "out_of_memory": no_memory(error)}
    path = scratch / f"raised-{os.environ['RANK']}.json"
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(said), encoding="utf-8")
    os.replace(beside, path)
