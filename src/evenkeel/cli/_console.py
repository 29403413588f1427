"""Where the command line writes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console

__all__ = ["console", "errors_to", "interruptible"]

console = Console()


def errors_to(stream: TextIO) -> Console:
    """Return a console that writes to ``stream``, found when it is needed: tests and pipes replace it."""
    return Console(file=stream)


@contextmanager
def interruptible(consequence: str) -> Iterator[None]:
    """Say what an interruption means; Typer then ends the process with code 130, as shells have it.

    Args:
        consequence: what is kept or lost.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        said = "; ".join(filter(None, (str(interrupt), consequence)))  # a study says how far it came
        errors_to(sys.stderr).print(f"interrupted: {said}", highlight=False, soft_wrap=True)
        raise
