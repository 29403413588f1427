"""What a study would do, and what it would take: nothing of it is done or written."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evenkeel.cli._console import console
from evenkeel.cli._words import duration
from evenkeel.study import (
    Estimate,
    Plan,
    Share,
    Study,
    StudyFolder,
    calibrate_side_by_side,
    disk_notice,
    estimate,
    open_study,
    size,
)
from evenkeel.study.engines import LocalEngine

__all__ = ["dry_run"]


def dry_run(plan: Plan, out: Path, *, workers: int | None = None) -> None:
    """Print the grid, how much of it is done, and an estimate of the rest from a few real steps.

    Args:
        plan: the plan.
        out: the study's folder, which need not exist.
        workers: runs at a time; None takes one a core.

    Raises:
        EvenkeelError: if the plan cannot be.
    """
    at_a_time = LocalEngine(workers=workers, resources=plan.resources).packing
    with console.status("checking the plan, loading data and model"):
        jobs = Study(plan, StudyFolder(out)).jobs()
    done = _done(out)
    left = [job for job in jobs if job.spec.id not in done]
    console.print(grid(plan, len(jobs), len(jobs) - len(left)))
    if not left:
        return
    with console.status("training a few steps to see what a run takes"):
        found = estimate(left, workers=at_a_time, calibrated=partial(calibrate_side_by_side, workers=at_a_time))
    console.print(estimated(found, at_a_time))
    if plan.checkpoints.wanted:
        console.print(disk_notice(left, out, at_a_time=at_a_time, keep=plan.checkpoints.keep), highlight=False)
    console.print("nothing was written", style="dim")


def _done(out: Path) -> set[str]:
    if not StudyFolder(out).store.is_file():
        return set()
    return {run.id for run in open_study(out)[1] if run.finished}


def grid(plan: Plan, runs: int, done: int) -> RenderableType:
    """Show what there is to do.

    Args:
        plan: the plan.
        runs: all of its runs.
        done: those with a result.

    Returns:
        The axes of the grid, each with its values, and the number of runs.
    """
    methods, recipes = plan.expanded_methods(), plan.recipes()
    axes = {
        "tasks": [task.name for task in plan.tasks],
        "models": list(plan.models),
        "methods": methods,
        _apart(plan): [_seeds(plan.seeds)],
        "sweep": [f"{key}: {', '.join(map(str, values))}" for key, values in plan.sweep.items()],
        "overrides": [f"{key}: {value}" for key, value in plan.overrides.items()],
        "only": [str(dict(rule)) for rule in plan.include],
        "without": [str(dict(rule)) for rule in plan.exclude],
    }
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, values in axes.items():
        if values:
            table.add_row(name, Text("\n".join(values)))
    draws = len(plan.seeds) ** max(1, len(plan.vary))
    whole = [(len(plan.tasks), "task"), (len(plan.models), "model"), (len(methods), "method"), (draws, "seed")]
    whole += [(len(recipes), "recipe")] if len(recipes) > 1 else []
    product = " x ".join(f"{n} {word}{'' if n == 1 else 's'}" for n, word in whole)
    chosen = ", of which some are left out" if plan.include or plan.exclude else ""
    count = f"{runs} runs: {product}{chosen}" + (f"; {done} are done already" if done else "")
    return Group(table, Text(count, style="bold"))


def _apart(plan: Plan) -> str:
    return f"seeds of {' x '.join(plan.vary)}" if plan.vary else "seeds"


def _seeds(seeds: Sequence[int]) -> str:
    whole = len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]} to {seeds[-1]}" if whole else ", ".join(map(str, seeds))


def estimated(found: Estimate, workers: int) -> RenderableType:
    """Show what the runs take.

    Args:
        found: the estimate.
        workers: runs at a time.

    Returns:
        A line for each method on each task and model, and the sums.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("method", overflow="fold")
    for heading in ("runs", "steps", "s/step", "a run"):
        table.add_column(heading, justify="right", no_wrap=True)
    alike = dict[tuple[str, str, str, int, float], list[Share]]()
    for share in found.shares:  # recipes that take as long stand in one line
        spec = share.example
        alike.setdefault((spec.task, spec.model, spec.method, share.steps, share.step_seconds), []).append(share)
    for (task, model), group in itertools.groupby(alike.items(), key=lambda item: item[0][:2]):
        table.add_row(Text(f"{task}, {model}", style="bold"))
        for (*_, method, steps, step), shares in group:
            numbers = (str(sum(share.runs for share in shares)), str(steps), f"{step:.2g}")
            table.add_row(Text(method), *numbers, duration(shares[0].run_seconds))
    sums = (
        f"about {duration(found.seconds)} with {workers} at a time, {size(found.disk)} on disk, up to "
        f"{size(found.memory)} of memory for each run at a time; from a few steps of each, so take it as a guess"
    )
    return Group(Text(), table, Text(), Text(sums))
