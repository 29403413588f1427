"""Running a study before somebody's eyes: progress, then table, then report."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path

import typer
from rich.live import Live

from evenkeel.cli._board import Board
from evenkeel.cli._console import console, interruptible
from evenkeel.cli._standing import WITH_RESULT, Standing
from evenkeel.cli._words import duration
from evenkeel.errors import PlanError, unknown_name
from evenkeel.report import findings, progress, results_table, verdicts, write_report
from evenkeel.study import LOG_FOLDER, Plan, RunRecord, Status, Store, Study, StudyFolder, open_study
from evenkeel.study.engines import Engine, LocalEngine, RayEngine, Report

__all__ = ["drive"]


def drive(
    plan: Plan, out: Path, *, workers: int | None = None, engine: str = "local", address: str | None = None
) -> None:
    """Run what is not done yet, print the table, and write the report.

    Args:
        plan: the plan.
        out: the study's folder.
        workers: runs at a time; None takes one a core.
        engine: where runs are executed: ``local`` or ``ray``.
        address: of a Ray cluster that runs; None starts one on this machine.

    Raises:
        EvenkeelError: if the plan cannot be, or the folder is not this study's.
        typer.Exit: with code 1, if a run has no result in the end.
    """
    study = Study(plan, StudyFolder(out))
    place = _engine(plan, engine, address=address, workers=workers)
    with console.status("checking the plan, loading data and model"):
        study.jobs()
    if "tensorboard" in plan.measures.report_to:
        os.environ.setdefault(LOG_FOLDER, str(out / "tensorboard"))  # which the workers inherit
    with interruptible("what was finished is kept; the same command goes on"):
        runs = _watched(study, place)
    broken = [run for run in runs if run.status in ("error", "lost")]
    for run in broken[:3]:
        reason = (run.error or "its process died again and again").strip().splitlines()[-1]
        name = f"{run.spec.method}, {run.spec.draw_in_words}"
        console.print(f"{name}: {run.status}: {reason}", style="red", markup=False, soft_wrap=True)
    if broken:
        console.print(f"{len(broken)} runs have no result; the same command tries them again", style="red")
    show_results(out)
    if broken:
        raise typer.Exit(1)


def _engine(plan: Plan, name: str, *, address: str | None, workers: int | None) -> Engine:
    if name == "ray":
        return RayEngine(address=address, workers=workers, resources=plan.resources)
    if name != "local":
        raise PlanError(unknown_name("engine", name, ["local", "ray"]))
    if address is not None:
        raise PlanError(f"--address {address} names a Ray cluster, and the engine is local; add --engine ray")
    return LocalEngine(workers=workers, resources=plan.resources)


def show_results(out: Path) -> None:
    """Print the table of a study and write its report.

    Args:
        out: the study's folder.
    """
    page = write_report(out)
    plan, runs, _ = open_study(out)
    show(plan, runs, page)


def show(plan: Plan, runs: Sequence[RunRecord], page: Path) -> None:
    """Print results and verdicts; the page has the evidence.

    Args:
        plan: the plan.
        runs: its runs.
        page: the report.
    """
    console.print(results_table(plan, runs))
    several = len(plan.expanded_methods()) > 1
    for sentence in [progress(runs), *map(str, verdicts(plan, runs))] if several else findings(plan, runs):
        console.print("-", sentence, markup=False, highlight=False)
    console.print("report:", str(page), soft_wrap=True, markup=False, highlight=False)


def _watched(study: Study, engine: Engine) -> list[RunRecord]:
    watcher = Watcher(study, engine)
    # On a terminal a table that is drawn again and again, and is gone when the results take its place.
    board = Live(watcher.board, console=console, refresh_per_second=4, transient=True)
    with board if console.is_terminal else nullcontext():
        return study.run(engine, on_report=watcher.report, on_notice=watcher.notice)


class Watcher:
    """Listens to a study that runs: keeps the board, and where there is no terminal prints a line for each run.

    Attributes:
        board: what a terminal shows.
    """

    def __init__(self, study: Study, engine: Engine) -> None:
        """Begin with what an earlier start has done.

        Args:
            study: what runs.
            engine: where.
        """
        self._engine, self._retries = engine, study.plan.retries
        self._standing = Standing(_records(study))
        self._raised: Counter[str] = Counter()
        self.board = Board(self._standing, left=self.left, note=_note(study.folder.path))

    def left(self) -> float | None:
        """Return how many seconds the rest takes, where that is known."""
        return self._standing.left(self._engine.packing, now=time.monotonic())

    def report(self, report: Report) -> None:
        """Take note of an event.

        Args:
            report: the event.
        """
        if report.instead is not None:
            self._standing.substitute(report.job.spec, report.instead.spec)
        else:
            outcome = report.result.outcome if report.result else {}
            self._standing.count(report.job.spec, self._status(report), outcome, now=time.monotonic())
        if not console.is_terminal and report.event != "started":
            self._line(report)

    def notice(self, sentence: str) -> None:
        """Show what the driver decided.

        Args:
            sentence: what it says.
        """
        console.print(sentence, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def _status(self, report: Report) -> Status:
        if report.event == "started":
            return "running"
        if report.result is not None:
            return "diverged" if report.result.diverged else "failed" if report.result.outcome["failed"] else "done"
        if report.event == "raised" and not report.out_of_memory:
            self._raised[report.job.spec.id] += 1
            return "error" if self._raised[report.job.spec.id] > self._retries else "queued"
        return "queued"  # lost, stopped, or out of memory: the driver tries it again, or says why not in the end

    def _line(self, report: Report) -> None:
        spec = report.job.spec
        recipe = self._standing.recipe(spec)
        name = "  ".join([spec.task, spec.method, *([recipe] if recipe else []), spec.draw_in_words])
        done, total = self._standing.counted(*WITH_RESULT), self._standing.counted()
        left = self.left()
        place = f"  [{done} of {total}" + (f", {duration(left)} left]" if left and done < total else "]")
        console.print(f"{name}: {_said(report)}{place}", markup=False, highlight=False, soft_wrap=True)


def _said(report: Report) -> str:
    """Say what came of a run."""
    if report.result is None:
        reason = (report.traceback or "").strip().splitlines()
        return f"{report.event}: {reason[-1]}" if reason else report.event
    outcome = report.result.outcome
    score = outcome["scores"]["validation"]
    failed = " (failed)" if outcome["failed"] else ""
    said = "diverged" if score is None else f"{outcome['metric']} {score:.3f}{failed}"
    return f"{said}, {outcome['wall_seconds']:.0f} s"


def _note(folder: Path) -> str:
    return f"Ctrl-C stops and keeps what is done; from elsewhere: evenkeel status {folder}"


def _records(study: Study) -> list[RunRecord]:
    """Return the plan's runs in its order: as recorded where an earlier start finished them, else as queued."""
    finished = dict[str, RunRecord]()
    if study.folder.store.is_file():
        # Not open_study: a driver may have died before it saved its plan.
        with closing(Store.reading(study.folder.store)) as store:
            finished = {run.id: run for run in store.runs() if run.finished}
    queued = {
        job.spec.id: RunRecord(id=job.spec.id, spec=job.spec, status="queued", attempts=0, outcome={}, error=None)
        for job in study.jobs()
    }
    return [finished.get(run, record) for run, record in queued.items()]
