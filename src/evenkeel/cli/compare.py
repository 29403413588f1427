"""``evenkeel compare``: two studies side by side."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from evenkeel.report import Judged

__all__ = ["compare"]


def compare(
    first: Annotated[Path, typer.Argument(help="The folder of a study.")],
    second: Annotated[Path, typer.Argument(help="The folder of another one, which is judged against the first.")],
) -> None:
    """Compare two studies, of different days or people: are the results the same, and was everything else?"""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from evenkeel.cli._console import console
    from evenkeel.errors import ReportError
    from evenkeel.report import compare_studies

    found = compare_studies(first, second)
    if not found.judged:
        raise ReportError(
            f"'{first}' and '{second}' share no task, model, recipe and method; see what they hold by evenkeel status"
        )
    for text in found.differences:
        console.print(f"not the same: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    for place, judged in itertools.groupby(found.judged, key=lambda one: f"{one.base.task}, {one.base.model}"):
        console.print(Text(place, style="bold"))
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        table.add_column("method", overflow="fold")
        for heading in ("first", "second", "difference", "std ratio", "failed", "verdict"):
            table.add_column(heading, justify="left" if heading == "verdict" else "right", overflow="fold")
        for one in judged:
            table.add_row(*map(Text, _texts(one)))
        console.print(table)
    for study, titles in zip(("first", "second"), found.only, strict=True):
        for title in titles:
            console.print(f"only in the {study}: {title}", style="dim", markup=False, highlight=False, soft_wrap=True)


def _texts(judged: Judged) -> list[str]:
    base, other = judged.base, judged.other
    means = [f"{sum(cell.scores) / len(cell.scores):.3f}" if cell.scores else "-" for cell in (base, other)]
    difference, ratio = "-", "-"
    if judged.scores is not None:
        low, high = judged.scores.difference_interval
        difference = f"{judged.scores.difference:+.3f} ({low:+.3f} to {high:+.3f})"
        ratio = f"{judged.scores.std_ratio:.2f}"
    failed = " / ".join(f"{len(cell.failed)}/{len(cell.finished)}" for cell in (base, other))
    words = {
        "mean": {"more": "higher", "less": "lower", "too few": "too few runs to tell"},
        "spread": {"more": "less steady", "less": "steadier"},
        "failures": {"more": "fails more often", "less": "fails less often"},
    }
    said = [words[what][verdict] for what in words if (verdict := getattr(judged, what)) in words[what]]
    method = base.method.removesuffix(" (first)")
    return [method, *means, difference, ratio, failed, ", ".join(said) or "not shown to differ"]
