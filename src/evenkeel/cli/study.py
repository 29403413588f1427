"""``evenkeel study``: compare methods over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from evenkeel.cli._options import ModelName, Shared, method_names, with_shared_options
from evenkeel.errors import PlanError

__all__ = ["study"]

_BESIDE_A_PLAN = ("plan", "out", "workers", "engine", "address", "changes", "dry_run")


@with_shared_options
def study(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder of the study: its records and its report.")],
    shared: Shared,
    plan: Annotated[
        Path | None, typer.Argument(help="A plan in YAML (docs/studies.md); change it by --set, not by other options.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="rte, mrpc, cola, grammar/acceptability, ...; several by commas.")
    ] = None,
    model: ModelName = "tiny",
    methods: Annotated[
        str, typer.Option(help="Methods to compare, by commas; a+b is one mix; name:option=value sets an option.")
    ] = "full,gradual-unfreezing,component-clip",
    seeds: Annotated[
        str, typer.Option(help="How many (20 stands for 1 to 20), or which: 1,2,5, and 42, for one alone.")
    ] = "5",
    layer_replacement: Annotated[
        bool,
        typer.Option("--layer-replacement", help="Also see which layers went wrong: docs/layer-replacement.md."),
    ] = False,
    workers: Annotated[int | None, typer.Option(help="Runs at a time; one a core unless told.")] = None,
    engine: Annotated[
        str, typer.Option(help="Where runs are executed: local, this machine; ray, a cluster (docs/scaling.md).")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster that runs, host:port or auto; without it one is started here.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change the plan: --set seeds=30 --set training.epochs=5; as often as needed.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done, and what it would take; write nothing.")
    ] = False,
) -> None:
    """Fine-tune by several methods over several seeds, and report which is steady.

    Interrupt it whenever you like: the same command goes on where it stopped.
    """
    if plan is not None and (given := _given(context, besides=_BESIDE_A_PLAN)):
        raise PlanError(
            f"both a plan and {', '.join(given)} were given; put what they say into '{plan}', or change it by --set"
        )
    from evenkeel.cli._drive import drive
    from evenkeel.cli._dry_run import dry_run as dry_drive
    from evenkeel.study import Plan, amended, load_plan

    begin = dry_drive if dry_run else partial(drive, engine=engine, address=address)
    if plan is not None:
        begin(load_plan(plan, changes or ()), out, workers=workers)
        return
    content = {
        "tasks": shared.named(task),
        "models": [model],
        "methods": method_names(methods),
        "seeds": _seeds(seeds),
        "training": shared.training,
        "measures": {"layer_replacement": layer_replacement},
    }
    begin(Plan.checked(amended(content, changes or ()), where="the command line"), out, workers=workers)


def _given(context: typer.Context, *, besides: Sequence[str]) -> list[str]:
    """Return the options that stand on the command line, except ``besides``."""
    options = [item for item in context.command.params if item.name and item.name not in besides]
    sources = [(item.opts[0], context.get_parameter_source(item.name or "")) for item in options]
    return [flag for flag, source in sources if source is not None and source.name == "COMMANDLINE"]


def _seeds(text: str) -> int | list[int]:
    try:
        numbers = [int(seed) for seed in text.rstrip(",").split(",")]
    except ValueError as error:
        raise PlanError(
            f"--seeds {text!r} is neither a number of seeds nor a list of seeds; write 20 or 1,2,5"
        ) from error
    return numbers if "," in text else numbers[0]
