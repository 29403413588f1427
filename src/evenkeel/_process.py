"""A process that ends with the one that started it, from its first moment on: this module loads nothing heavy."""

from __future__ import annotations

import importlib
import os
import signal
import threading
import time
from typing import Any

__all__ = ["end_with", "how_it_ended", "run_below"]

_LOOK_SECONDS = 1.0


def run_below(parent: int, module: str, function: str, *arguments: Any) -> Any:
    """Call a function in a process that was just started, and end by itself where the parent ends first.

    Args:
        parent: the id of the process that started this one.
        module: where the function is; its imports may take long, and by then the parent is watched.
        function: its name.
        *arguments: what it is called with.

    Returns:
        What it returns.
    """
    end_with(parent)
    return getattr(importlib.import_module(module), function)(*arguments)


def end_with(parent: int) -> None:
    """Let this process end by itself within seconds of the end of its parent.

    Args:
        parent: the id of the process that started this one.
    """
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os._exit(1)


def how_it_ended(code: int | None) -> str:
    """Say how a process ended.

    Args:
        code: its exit code, negative where a signal ended it; None where nobody knows.

    Returns:
        The end of a sentence about the process.

    Example:
        >>> how_it_ended(3), how_it_ended(-15)
        ('ended with exit code 3', 'was ended by SIGTERM')
    """
    if code is None:
        return "is out of reach"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (no memory left on this machine?)" if -code == signal.SIGKILL else ""
    return f"was ended by {name}{hint}"
