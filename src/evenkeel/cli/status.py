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
    every: tuple[Status, ...] = ("done", "diverged", "running", "queued", "error", "lost")
    states = [state for state in every if any(run.status == state for run in runs)]
    for name in ("task", "model", "method"):
        table.add_column(name, overflow="fold")
    for state in states:
        table.add_column(state, justify="right")
    cells = Counter((run.spec.task, run.spec.model, run.spec.method, run.status) for run in runs)
    for task, model, method in dict.fromkeys(key[:3] for key in cells):
        table.add_row(task, model, method, *(str(cells[task, model, method, state] or "") for state in states))
    console.print(table)
