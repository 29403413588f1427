"""``evenkeel calibrate``: what learning rate, what thresholds, how large a step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evenkeel.cli._options import ModelName, Shared, with_shared_options
from evenkeel.errors import PlanError

if TYPE_CHECKING:
    from rich.table import Table

    from evenkeel.calibrate import Probe, Proposal
    from evenkeel.study.engines import Job

__all__ = ["calibrate"]

_PROBE = "Probe"


@with_shared_options
def calibrate(
    shared: Shared,
    task: Annotated[str | None, typer.Option(help="rte, mrpc, cola, grammar/acceptability, ...")] = None,
    model: ModelName = "tiny",
    out: Annotated[Path, typer.Option(help="New folder for plan.yaml, calibration.json and calibration.html.")] = Path(
        "evenkeel-calibration"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of head, data order and dropout.")] = 3,
    lowest: Annotated[
        float, typer.Option(help="Learning rate that the range test begins with.", rich_help_panel=_PROBE)
    ] = 1e-6,
    highest: Annotated[float, typer.Option(help="Learning rate that it ends with.", rich_help_panel=_PROBE)] = 1e-1,
    quantile: Annotated[
        float, typer.Option(help="Share of gradients that thresholds leave alone.", rich_help_panel=_PROBE)
    ] = 0.9,
    travel: Annotated[
        float,
        typer.Option(help="How far a component may travel in a run, in norms of its weights.", rich_help_panel=_PROBE),
    ] = 0.5,
) -> None:
    """Propose learning rate, thresholds and the largest step, from a tenth of a run for each seed.

    --lr is the rate of the recipe that you know, at which gradients and first steps are looked at. What is proposed is
    a beginning: plan.yaml is the study that tests it.
    """
    if "," in (task or ""):
        raise PlanError(f"a calibration is of one task, but got '{task}'; calibrate each on its own")
    from evenkeel.calibrate import METHOD, check_options, jobs_of, propose, write_calibration
    from evenkeel.cli._console import console, interruptible
    from evenkeel.study import Plan, check_new_folder

    content = {
        "tasks": shared.named(task),
        "models": [model],
        "methods": [METHOD],
        "seeds": seeds,
        "training": shared.training,
    }
    plan = Plan.checked(content, where="the command line")
    check_new_folder(out)
    check_options(lowest=lowest, highest=highest, quantile=quantile, travel=travel)
    with interruptible("nothing was saved"):
        jobs = jobs_of(plan)
        found = _probed(jobs, lowest=lowest, highest=highest)
        proposal = propose(found, quantile=quantile, travel=travel)
        write_calibration(out, plan=plan, job=jobs[0], probe=found, proposal=proposal)
    for table in (_proposals(proposal), _thresholds(proposal)):
        console.print(table)
    console.print(
        "None of this is tested on your task: plan.yaml is the study that does it.", highlight=False, soft_wrap=True
    )
    console.print(
        f"saved in {out}: plan.yaml, calibration.json, calibration.html", markup=False, highlight=False, soft_wrap=True
    )


def _probed(jobs: Sequence[Job], *, lowest: float, highest: float) -> Probe:
    """Train the probes under a bar of their steps."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from evenkeel.calibrate import budget, probe, steps_of_run
    from evenkeel.cli._console import console

    steps = budget(steps_of_run(jobs[0]))
    columns = (TextColumn("probing"), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("probing", total=len(jobs) * (steps.steady + steps.rising))
        found = probe(jobs, lowest=lowest, highest=highest, on_step=lambda: progress.advance(bar))
        progress.update(bar, completed=len(jobs) * (steps.steady + steps.rising))  # where a loss exploded, too
    return found


def _proposals(proposal: Proposal) -> Table:
    from rich.table import Table

    rate = proposal.learning_rate
    table = Table("proposal", "value", "why", title="proposed")
    table.add_row("learning rate", f"{rate.value:.2g}", rate.reason)
    for number, rule in enumerate(proposal.rules):
        value = "-" if rule.max_update is None else f"{rule.max_update:g}"
        table.add_row(f"max_update, {rule.name}" + ("" if number else " (taken)"), value, rule.reason)
    return table


def _thresholds(proposal: Proposal) -> Table:
    from rich.table import Table

    table = Table("role", "max_norm", "clips", "at most", "0.05 clips", title="thresholds by role")
    for one in proposal.thresholds:
        shares = (one.clipped, one.most_clipped, one.clipped_by_paper)
        table.add_row(one.role, f"{one.max_norm:g}", *(f"{share:.0%}" for share in shares))
    table.caption = (
        f"the {proposal.quantile:g} quantile of the norms of a role's gradients, all components and steps; clips: "
        "share of gradients above it; at most: of the component that it clips most often"
    )
    return table
