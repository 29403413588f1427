"""``evenkeel study``: compare methods over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evenkeel.cli import _options as options
from evenkeel.cli._options import task_fields
from evenkeel.errors import PlanError

__all__ = ["study"]


def study(
    out: Annotated[Path, typer.Option(help="Folder of the study: its records and its report.")],
    plan: Annotated[Path | None, typer.Argument(help="A plan in YAML; instead of the options below.")] = None,
    task: Annotated[str | None, typer.Option(help="rte, mrpc, cola, grammar/acceptability, ...; several by commas.")] = None,
    model: options.ModelName = "tiny",
    methods: Annotated[
        str, typer.Option(help="Methods to compare, by commas; a+b is one mix; name:option=value sets an option.")
    ] = "full,gradual-unfreezing,component-clip",
    seeds: Annotated[str, typer.Option(help="How many seeds (20 stands for 1 to 20), or which: 1,2,5.")] = "5",
    workers: Annotated[int | None, typer.Option(help="Runs at a time; one a core unless told.")] = None,
    data: options.Data = None,
    train: options.Train = None,
    validation: options.Validation = None,
    text: options.TextColumns = None,
    label: options.LabelColumn = None,
    metric: options.MetricName = None,
    max_train_samples: options.MaxTrainSamples = None,
    learning_rate: options.LearningRate = 2e-5,
    epochs: options.Epochs = 3.0,
    batch_size: options.BatchSize = 16,
    max_length: options.MaxLength = 128,
    weight_decay: options.WeightDecay = 0.0,
    warmup: options.Warmup = 0.0,
    schedule: options.Schedule = "linear",
    precision: options.Precision = "float32",
    group_by_length: options.GroupByLength = True,
) -> None:
    """Fine-tune by several methods over several seeds, and report which is steady.

    Interrupt it whenever you like: the same command goes on where it stopped.
    """
    from evenkeel.study import load_plan
    from evenkeel.study._plan import validated

    if plan is not None:
        if task or train:
            raise PlanError("both a plan and --task or --train were given; put the tasks into the plan")
        read = load_plan(plan)
    else:
        one = task_fields(
            None, data=data, train=train, validation=validation, text=text, label=label, metric=metric,
            max_train_samples=max_train_samples,
        )  # fmt: skip
        if not task and not train:
            raise PlanError("no task was given; name one with --task, or give your own files with --train and --validation")
        names = task.split(",") if task else [one["name"]]
        read = validated(
            {
                "tasks": [{**one, "name": name.strip()} for name in names],
                "models": [model],
                "methods": [name.strip() for name in methods.split(",")],
                "seeds": _seeds(seeds),
                "training": {
                    "learning_rate": learning_rate,
                    "epochs": epochs,
                    "batch_size": batch_size,
                    "max_length": max_length,
                    "weight_decay": weight_decay,
                    "warmup": warmup,
                    "schedule": schedule,
                    "precision": precision,
                    "group_by_length": group_by_length,
                },
            },
            where="the command line",
        )
    from evenkeel.cli._drive import drive

    drive(read, out, workers=workers)


def _seeds(text: str) -> int | list[int]:
    try:
        numbers = [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise PlanError(f"--seeds {text!r} is neither a number of seeds nor a list of seeds; write 20 or 1,2,5") from error
    return numbers if "," in text else numbers[0]
