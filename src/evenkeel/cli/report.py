"""``evenkeel report``: the results of a study as a table and a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["report"]


def report(folder: Annotated[Path, typer.Argument(help="The study's folder.")]) -> None:
    """Print the results table of a study and write its page; the study may still be running."""
    from evenkeel.cli._drive import show_results

    show_results(folder)
