"""``evenkeel status``: how far a study is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from evenkeel.cli._standing import Standing

__all__ = ["status"]

_SECONDS_BETWEEN_LOOKS = 2.0


def status(
    folder: Annotated[Path, typer.Argument(help="The study's folder.")],
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again, until all runs are done.")] = False,
) -> None:
    """Show how far a study is; it may be running, and is not disturbed."""
    from evenkeel.cli._board import Board, counts, methods_table
    from evenkeel.cli._console import console, interruptible

    standing = _look(folder)
    if watch and console.is_terminal:
        from rich.live import Live

        board = Board(standing, left=lambda: _left(board.standing), note="Ctrl-C ends the watching, not the study")
        with interruptible("the study goes on"), Live(board, console=console, transient=True):
            for look in _looks(folder, standing):
                board.standing = standing = look
    elif watch:
        for look in _looks(folder, standing):
            standing = look
            console.print(counts(standing, _left(standing)), highlight=False, soft_wrap=True)
    console.print(counts(standing, _left(standing)), highlight=False, soft_wrap=True)
    console.print(methods_table(standing))


def _look(folder: Path) -> Standing:
    from evenkeel.cli._standing import Standing
    from evenkeel.study import open_study

    return Standing(open_study(folder)[1])


def _looks(folder: Path, standing: Standing) -> Iterator[Standing]:
    """Yield how the study stands, until nothing is left to do; looking takes a tenth of the time at most."""
    while standing.counted("queued", "running"):
        yield standing
        began = time.monotonic()
        standing = _look(folder)
        time.sleep(max(_SECONDS_BETWEEN_LOOKS, 9 * (time.monotonic() - began)))
    yield standing


def _left(standing: Standing) -> float | None:
    """Estimate how long the rest takes, with as many at a time as run now; None where nothing runs."""
    running = standing.counted("running")
    return standing.left(running, now=0.0) if running else None
