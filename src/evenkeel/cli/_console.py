"""Where the command line writes."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console

__all__ = ["console", "errors_to"]

console = Console()


def errors_to(stream: TextIO) -> Console:
    """Return a console that writes to ``stream``, found when it is needed: tests and pipes replace it."""
    return Console(file=stream)
