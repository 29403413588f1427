"""``evenkeel pack``: a study small enough to be committed or sent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["pack"]


def pack(
    source: Annotated[Path, typer.Argument(help="The study's folder.")],
    out: Annotated[Path, typer.Argument(help="A new folder for the copy.")],
) -> None:
    """Copy a study without curves, telemetry and predictions: scores, records and the report."""
    from evenkeel import study
    from evenkeel.cli._console import console

    folder = study.pack(source, out)
    taken = study.size(sum(path.stat().st_size for path in folder.path.iterdir()))
    console.print(f"packed: {folder.path} ({taken})", markup=False, highlight=False, soft_wrap=True)
