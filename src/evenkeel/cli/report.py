"""``evenkeel report``: the results of a study as a table and a page."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from evenkeel.errors import ReportError

__all__ = ["report"]

_SECONDS = 30  # between two looks at a study that goes on


def report(
    source: Annotated[Path, typer.Argument(help="The study's folder; or scores of your own, a CSV file.")],
    out: Annotated[
        Path | None, typer.Option(help="For scores of your own: a folder for the report; beside the file if left out.")
    ] = None,
    figures: Annotated[
        str | None, typer.Option(help="Also write every figure for a paper: svg, pdf or png, into DIR/figures.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Write it again and again while the study runs; the page follows.")
    ] = False,
) -> None:
    """Print verdicts and results, and write the page; the study may still be running."""
    if source.is_file():
        if figures is not None or watch:
            raise ReportError(f"--figures and --watch are for the folder of a study, and '{source}' is a file")
        _on_scores(source, out or source.with_name(f"{source.stem}-report"))
        return
    if out is not None:
        raise ReportError("--out is for scores of your own; the report of a study lies in its folder")
    if watch:
        _watch(source)
    from evenkeel.cli._drive import show_results

    show_results(source)
    if figures is not None:
        _export(source, figures)


def _on_scores(source: Path, out: Path) -> None:
    from evenkeel.cli._console import console
    from evenkeel.cli._drive import show
    from evenkeel.report import write_report_on_scores

    plan, runs, notes = write_report_on_scores(source, out)
    for note in notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    show(plan, runs, out / "report.html")


def _watch(folder: Path) -> None:
    """Write the page again and again, until all runs are done."""
    from evenkeel.cli._console import console, interruptible
    from evenkeel.report import write_report
    from evenkeel.study import open_study

    with interruptible("the study goes on"):
        while True:
            runs = open_study(folder)[1]
            left = sum(run.status in ("queued", "running") for run in runs)
            if not left:
                return
            if any(run.finished for run in runs):
                page = write_report(folder, refresh=_SECONDS)
                console.print(f"{left} of {len(runs)} runs left: {page}", markup=False, highlight=False, soft_wrap=True)
            time.sleep(_SECONDS)


def _export(folder: Path, kind: str) -> None:
    from evenkeel.cli._console import console
    from evenkeel.report import export_figures, load_study

    written = 0
    with console.status("drawing figures") as status:  # of a sweep there are hundreds, each of which takes seconds
        for path in export_figures(load_study(folder), folder / "figures", kind):
            written += 1
            status.update(f"drawing figures: {written} written, the last {path.name}")
    console.print(f"figures: {written} in {folder / 'figures'}", markup=False, highlight=False, soft_wrap=True)
