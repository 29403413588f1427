"""Running a study before somebody's eyes: progress, then table, then report."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from pathlib import Path

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from evenkeel.cli._console import console, interruptible
from evenkeel.report import findings, results_table, write_report
from evenkeel.study import Plan, RunRecord, Store, Study, StudyFolder, open_study
from evenkeel.study.engines import LocalEngine, Report

__all__ = ["drive"]


def drive(plan: Plan, out: Path, *, workers: int | None = None) -> None:
    """Run what is not done yet, print the table, and write the report.

    Args:
        plan: the plan.
        out: the study's folder.
        workers: runs at a time; None takes one a core.

    Raises:
        EvenkeelError: if the plan cannot be, or the folder is not this study's.
        typer.Exit: with code 1, if a run has no result in the end.
    """
    study = Study(plan, StudyFolder(out))
    engine = LocalEngine(workers=workers)
    with console.status("checking the plan, loading data and model"):
        total = len(study.jobs())
    with interruptible("what was finished is kept; the same command goes on"):
        runs = _with_progress(study, engine, total)
    broken = [run for run in runs if run.status in ("error", "lost")]
    for run in broken[:3]:
        reason = (run.error or "its process died again and again").strip().splitlines()[-1]
        console.print(f"{run.spec.method}, seed {run.spec.seed}: {run.status}: {reason}", style="red", markup=False)
    if broken:
        console.print(f"{len(broken)} runs have no result; the same command tries them again", style="red")
    show_results(out)
    if broken:
        raise typer.Exit(1)


def show_results(out: Path) -> None:
    """Print the table of a study and write its report.

    Args:
        out: the study's folder.
    """
    page = write_report(out)
    plan, runs, _ = open_study(out)
    console.print(results_table(plan, runs))
    for sentence in findings(plan, runs):
        console.print("-", sentence, markup=False, highlight=False)
    console.print("report:", str(page), soft_wrap=True, markup=False, highlight=False)


def _with_progress(study: Study, engine: LocalEngine, total: int) -> list[RunRecord]:
    counts: Counter[str] = Counter()
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("runs", total=total, note="")

        def show(report: Report) -> None:
            counts[report.event] += 1
            if report.event == "ended" and report.result:
                counts["failed"] += bool(report.result.outcome["failed"])
                _line(report)
            running = counts["started"] - counts["ended"] - counts["raised"] - counts["lost"]
            progress.update(
                bar,
                completed=already + counts["ended"] + counts["raised"],
                note=f"{running} running, {counts['failed']} failed",
            )

        already = _done(study)
        progress.update(bar, completed=already)
        return study.run(engine, on_report=show)


def _done(study: Study) -> int:
    """Count the runs of the plan that an earlier start finished."""
    if not study.folder.store.is_file():
        return 0
    with closing(Store(study.folder.store)) as store:  # not open_study: a driver may have died before it saved its plan
        finished = {run.id for run in store.runs() if run.finished}
    return sum(job.spec.id in finished for job in study.jobs())


def _line(report: Report) -> None:
    """Print one finished run where there is no progress bar to watch."""
    if console.is_terminal or report.result is None:
        return
    outcome, spec = report.result.outcome, report.job.spec
    score = outcome["scores"]["validation"]
    said = (
        "diverged" if score is None else f"{outcome['metric']} {score:.3f}" + (" (failed)" if outcome["failed"] else "")
    )
    console.print(
        f"{spec.task}  {spec.method}  seed {spec.seed}: {said}, {outcome['wall_seconds']:.0f} s",
        markup=False,
        highlight=False,
    )
