"""``evenkeel finetune``: one model to keep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evenkeel.cli._options import ModelName, Shared, method_names, with_shared_options
from evenkeel.errors import PlanError

__all__ = ["finetune"]


@with_shared_options
def finetune(
    out: Annotated[Path, typer.Option(help="New folder for the model, its metrics and its predictions.")],
    shared: Shared,
    task: Annotated[str | None, typer.Option(help="rte, mrpc, cola, grammar/acceptability, ...")] = None,
    model: ModelName = "tiny",
    methods: Annotated[
        str, typer.Option(help="One method, or a mix: component-clip+gradual-unfreezing.")
    ] = "component-clip",
    seed: Annotated[int, typer.Option(help="Seed of head, data order and dropout.")] = 1,
) -> None:
    """Fine-tune one model and save it so that plain transformers loads it."""
    if len(method_names(methods)) > 1 or "," in (task or ""):
        raise PlanError(
            f"finetune trains one model on one task, but got the methods '{methods}' and the task '{task}'; join "
            "methods with + to mix them, or compare them by evenkeel study"
        )
    from evenkeel.cli._console import console, interruptible
    from evenkeel.cli._progress import TrainingProgress
    from evenkeel.study import Plan, finetune_one

    content = {
        "tasks": shared.named(task),
        "models": [model],
        "methods": [methods],
        "seeds": [seed],
        "training": shared.training,
    }
    plan = Plan.checked(content, where="the command line")
    with interruptible("nothing was saved"):
        outcome = finetune_one(plan, out, callbacks=[TrainingProgress(console)])
    score = outcome["scores"]["validation"]
    if outcome["diverged"]:
        console.print(
            f"Training diverged: the loss is no number any more. Metrics are in {out}; no model was saved.",
            style="red",
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(1)
    console.print(
        f"{outcome['metric']} {score:.3f} on validation (always guessing the commonest label: "
        f"{outcome['majority']['validation']:.3f})" + (": no better than chance" if outcome["failed"] else "")
    )
    console.print(f"saved in {out}: the model, metrics.json, predictions.parquet", markup=False, highlight=False)
