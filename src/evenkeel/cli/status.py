"""``evenkeel status``: how far a study is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["status"]


def status(folder: Annotated[Path, typer.Argument(help="The study's folder.")]) -> None:
    """Show how far a study is; it may be running."""
    from collections import Counter

    from rich.table import Table

    from evenkeel.cli._console import console
    from evenkeel.study import Status, open_study

    _, runs, _ = open_study(folder)
    table = Table(title=f"{sum(run.finished for run in runs)} of {len(runs)} runs have a result")
    states: tuple[Status, ...] = ("done", "diverged", "running", "queued", "error", "lost")
    for column in ("task", "method", *states):
        table.add_column(column, justify="left" if column in ("task", "method") else "right")
    cells = Counter((run.spec.task, run.spec.method, run.status) for run in runs)
    for task, method in dict.fromkeys((run.spec.task, run.spec.method) for run in runs):
        table.add_row(task, method, *(str(cells[task, method, state] or "") for state in states))
    console.print(table)
