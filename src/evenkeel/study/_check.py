"""What is seen before anything starts: everything that is wrong with a plan, at once."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

from evenkeel.errors import EvenkeelError, PlanError
from evenkeel.integrations.transformers import check_mix
from evenkeel.methods import Mix, Setting, parse_mix
from evenkeel.models import skeleton
from evenkeel.partition import blocks, components
from evenkeel.study._execute import training_arguments
from evenkeel.study._faults import raise_all
from evenkeel.study._plan import Plan, RunSpec, TaskPlan
from evenkeel.study._prepare import load_data, locate_model
from evenkeel.study._processes import check_shared_plan, check_shared_run

__all__ = ["check_plan", "check_specs"]


def check_plan(plan: Plan) -> None:
    """Find everything that a plan names, and see that it goes together.

    Args:
        plan: the plan.

    Raises:
        EvenkeelError: the only fault, in its own class; a ``PlanError`` that lists them where there are several.
    """
    errors = list[EvenkeelError]()
    mixes, tasks, models = list[Mix](), list[TaskPlan](), list[str]()
    with _caught(errors):
        check_shared_plan(plan)
    for precision in dict.fromkeys(training.precision for training, _ in plan.recipes()):
        with _caught(errors):
            _check_precision(precision)
    for method in plan.expanded_methods():
        with _caught(errors):
            mixes.append(parse_mix(method))
    for task in plan.tasks:
        with _caught(errors):
            load_data(task)
            tasks.append(task)
    for model in plan.models:
        with _caught(errors):
            locate_model(model)
            models.append(model)
    for task, model in itertools.product(tasks, models):
        _check_place(plan, task, model, mixes, errors)
    raise_all(errors, "the plan")


def check_specs(specs: Iterable[RunSpec]) -> None:
    """See that runs can be: what TrainingArguments takes, what methods need, what several processes can share.

    Args:
        specs: the runs.

    Raises:
        EvenkeelError: the only fault, in its own class; a ``PlanError`` that lists them where there are several.
    """
    errors = list[EvenkeelError]()
    seen = set[str]()
    for spec in specs:
        plain = not spec.overrides and spec.processes == 1
        recipe = "" if plain else f"{spec.method} {spec.training} {spec.overrides}"
        if plain or recipe in seen:
            continue
        seen.add(recipe)
        if spec.overrides:
            with _caught(errors):
                _check_overrides(spec)
        with _caught(errors):
            check_shared_run(spec)
    raise_all(errors, "the plan")


@contextmanager
def _caught(errors: list[EvenkeelError]) -> Iterator[None]:
    """Keep an error for later, once."""
    try:
        yield
    except EvenkeelError as error:
        if str(error) not in map(str, errors):
            errors.append(error)


def _check_precision(precision: str) -> None:
    if precision == "fp16" and not torch.accelerator.is_available():
        raise PlanError("fp16 needs a GPU, and there is none here; use bf16, or float32")


def _check_place(plan: Plan, task: TaskPlan, model: str, mixes: Sequence[Mix], errors: list[EvenkeelError]) -> None:
    """See that a model can learn a task, and has what every method and measurement needs."""
    data = load_data(task)
    with _caught(errors):
        built = skeleton(locate_model(model), data.classes)
        setting = Setting(model=built, parts=components(built), problem=data.problem)
        for mix in mixes:
            with _caught(errors):
                mix.check(setting)
        if plan.measures.layer_replacement and not blocks(built):
            raise PlanError(
                f"measures.layer_replacement was asked for, and no layers were found in the model '{model}'; leave it "
                "out, or choose another model"
            )


def _check_overrides(spec: RunSpec) -> None:
    accumulated = spec.overrides.get("gradient_accumulation_steps", 1)
    if accumulated < 1 or spec.training.batch_size % accumulated:
        raise PlanError(
            f"overrides.gradient_accumulation_steps: batch_size {spec.training.batch_size} counts the examples of an "
            f"optimizer step, and is not to be split into {accumulated} equal parts; change one of them"
        )
    with tempfile.TemporaryDirectory() as scratch:
        try:
            arguments = training_arguments(spec, scratch, examples=1)
        except (TypeError, ValueError, ImportError) as error:
            raise PlanError(f"overrides: TrainingArguments refuses them: {error}") from error
    check_mix(parse_mix(spec.method), arguments, kind=None, in_backward=False, given=None)
