"""A Ray cluster to work on: one that is there, or one on this machine that is stopped again."""

from __future__ import annotations

import importlib
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from evenkeel.errors import EngineError, MissingExtraError
from evenkeel.study._plan import Resources

__all__ = ["connected", "import_ray", "room_for", "with_gpus"]

_OBJECT_STORE_BYTES = 512 * 2**20  # of a cluster that we start: one machine's data and results in passing
_ANSWER_SECONDS = 10.0
_NOBODY = (
    "there is no Ray cluster to be reached at '{address}' ({reason}); start one by ray start --head, run this on one "
    "of its nodes, or leave --address out to use this machine alone"
)
_NO_USAGE_REPORT = "RAY_USAGE_STATS_ENABLED"


def import_ray() -> Any:
    """Import Ray.

    Returns:
        The module.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtraError(
            "the engine ray needs Ray, which is not installed: pip install 'evenkeel[ray]'"
        ) from error


@contextmanager
def connected(address: str | None, *, cpus: int) -> Iterator[None]:
    """Be connected to a cluster; a connection that the process has already is taken, and left as it is.

    Args:
        address: of a cluster that runs, ``"auto"`` for the one of this machine; None starts one here, with neither
            dashboard nor report of usage, and stops it in the end.
        cpus: how many cores that one counts as.

    Yields:
        Nothing.

    Raises:
        EngineError: if there is no cluster at the address, or none can be started.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield
        return
    if address not in (None, "auto"):
        _knock(str(address))
    try:
        with _our_signals():
            if address is None:
                _start(ray, cpus)
            else:
                ray.init(address=address, log_to_driver=False, configure_logging=False)
    except Exception as error:  # of many kinds
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
        if address is None:
            raise EngineError(f"Ray cannot be started on this machine ({reason}); see its logs in /tmp/ray") from error
        raise EngineError(_NOBODY.format(address=address, reason=reason)) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """See that somebody answers at an address: Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise EngineError(
            f"'{address}' is no address of a Ray cluster's head; write host:port, as ray start --head tells it, or auto"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise EngineError(_NOBODY.format(address=address, reason=error)) from error


def _start(ray: Any, cpus: int) -> None:
    before = os.environ.get(_NO_USAGE_REPORT)
    os.environ.setdefault(_NO_USAGE_REPORT, "0")
    try:
        ray.init(
            address="local",  # also where the environment names a cluster
            num_cpus=cpus,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            object_store_memory=_OBJECT_STORE_BYTES,
        )
    finally:
        if before is None:
            del os.environ[_NO_USAGE_REPORT]


@contextmanager
def _our_signals() -> Iterator[None]:
    """Keep what answers SIGTERM, which Ray would replace, and let Ray tell of errors alone."""
    logger = logging.getLogger("ray")
    level, ours = logger.level, threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        if ours:
            signal.signal(signal.SIGTERM, before)


def with_gpus(resources: Resources) -> Resources:
    """Decide what GPUs a process has where the plan leaves it open: one, or a share of one, if the cluster has any."""
    if resources.gpus is not None:
        return resources
    share = 1 / int(resources.sharing)
    return resources.model_copy(update={"gpus": share if import_ray().cluster_resources().get("GPU") else 0.0})


def room_for(resources: Resources) -> int:
    """Count how many runs the cluster's nodes hold at a time, by what they have in all.

    Args:
        resources: of each run.

    Returns:
        The number; 0 where no node is large enough.
    """
    return sum(_on_node(node["Resources"], resources) for node in import_ray().nodes() if node["Alive"])


def _on_node(has: Mapping[str, float], resources: Resources) -> int:
    cpus, gpus, wanted = has.get("CPU", 0.0), has.get("GPU", 0.0), resources.run_gpus
    room = math.floor(cpus / resources.run_cpus + 1e-9)
    if not wanted:
        return room
    if wanted >= 1:
        return min(room, math.floor(gpus / wanted))
    return min(room, math.floor(gpus) * math.floor(1 / wanted + 1e-9))
