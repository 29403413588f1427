"""``evenkeel demo``: the main job on the embedded model and task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["DEMO_PLAN", "demo"]

# Chosen by the sweep in docs/demo.md, whose command is beside its table: a learning rate at which some seeds of full
# fine-tuning fail and others do well.
DEMO_PLAN = {
    "tasks": ["grammar/acceptability"],
    "models": ["tiny"],
    "methods": ["full", "gradual-unfreezing", "component-clip"],
    "training": {"learning_rate": 1e-3, "epochs": 3.0},
}


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the demo's study and report.")] = Path("evenkeel-demo"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each method.")] = 10,
    workers: Annotated[int | None, typer.Option(help="Runs at a time; one a core unless told.")] = None,
) -> None:
    """See what evenkeel is for, in a few minutes: three ways of fine-tuning where it is a lottery.

    A BERT of a million parameters learns which sentences of a small English grammar are well formed, at a learning rate
    where the seed decides whether it learns anything. Needs no network and no GPU.
    """
    from evenkeel.cli._console import console
    from evenkeel.cli._drive import drive
    from evenkeel.study import Plan

    console.print(
        f"Three methods, {seeds} seeds each, on the embedded model and task, at a learning rate where fine-tuning is a "
        "lottery. Interrupt it if you like: the same command goes on.\n"
    )
    drive(Plan.checked({**DEMO_PLAN, "seeds": seeds}, where="the demo"), out, workers=workers)
