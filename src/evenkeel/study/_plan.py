"""What a study is to do: tasks x models x methods x seeds, under one recipe of training."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from evenkeel.errors import PlanError, unknown_name
from evenkeel.tasks import TaskSource

__all__ = ["Measures", "Plan", "RunSpec", "TaskPlan", "Training", "load_plan"]

_MOST_SEEDS = 100_000  # as a count; a larger number was meant as a seed

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Training(_Frozen):
    """The recipe that all runs of a study share. The defaults are the paper's, and length grouping, which is ours."""

    learning_rate: Positive = Field(default=2e-5, description="peak learning rate")
    epochs: Positive = Field(default=3.0, description="epochs; of each phase, for methods that train in phases")
    batch_size: Count = Field(default=16, description="examples per optimizer step")
    max_length: Annotated[int, Field(ge=4)] = Field(default=128, description="longer texts are cut, in tokens")
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(default=0.0, description="AdamW's decay")
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="share of steps with a rising rate")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="decay of the learning rate"
    )
    precision: Literal["float32", "bf16", "fp16"] = Field(
        default="float32", description="autocast; weights are float32"
    )
    group_by_length: bool = Field(
        default=True, description="batches of like lengths: faster, another order of the data"
    )
    record_every: Count = Field(default=10, description="record gradient norms each so many steps")


class TaskPlan(_Frozen):
    """A task and where its data is; the fields are those of :class:`evenkeel.tasks.TaskSource`."""

    name: str
    data: Path | None = None
    train: Path | None = None
    validation: Path | None = None
    text: tuple[str, ...] | None = None
    label: str | None = None
    metric: str | None = None
    max_train_samples: Count | None = None

    def source(self) -> TaskSource:
        """Return the same as the tasks know it."""
        return TaskSource(**self.model_dump())


class Measures(_Frozen):
    """What runs measure beside what they always record; no run's result depends on it, so it is no part of a run.

    It holds for the runs that are still to be done. What was finished before stays as it is, with or without.
    """

    layer_replacement: bool = Field(
        default=False, description="put pretrained weights back into the top k layers, and evaluate, for every k"
    )


class RunSpec(_Frozen):
    """One run: everything that its result depends on, and nothing else."""

    task: str
    metric: str
    data_fingerprint: str
    model: str
    model_fingerprint: str
    method: str
    seed: int
    training: Training

    @property
    def id(self) -> str:
        """Hash of the canonical specification, 16 hexadecimal digits."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


class Plan(_Frozen):
    """A grid of runs."""

    tasks: Annotated[tuple[TaskPlan, ...], Field(min_length=1)]
    models: Annotated[tuple[str, ...], Field(min_length=1)] = ("tiny",)
    methods: Annotated[tuple[str, ...], Field(min_length=1)] = ("full", "gradual-unfreezing", "component-clip")
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1)]
    training: Training = Training()
    measures: Measures = Measures()

    @field_validator("seeds", mode="before")
    @classmethod
    def _count_of_seeds(cls, value: Any) -> Any:
        """A single number counts seeds: 20 stands for 1 to 20."""
        if not isinstance(value, int):
            return value
        if not 1 <= value <= _MOST_SEEDS:
            raise ValueError(
                f"a single number counts seeds, from 1 to {_MOST_SEEDS}; to name seeds, give a list of them"
            )
        return tuple(range(1, value + 1))

    @field_validator("tasks", mode="before")
    @classmethod
    def _bare_names(cls, value: Any) -> Any:
        return (
            [{"name": task} if isinstance(task, str) else task for task in value] if isinstance(value, list) else value
        )

    @field_validator("methods", "seeds", "models", "tasks")
    @classmethod
    def _no_repeats(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [item.name if isinstance(item, TaskPlan) else item for item in value]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice!r} stands there twice")
        return value

    @classmethod
    def checked(cls, content: dict[str, Any], *, where: str) -> Plan:
        """Make a plan from plain values, with errors in the words of the person who wrote them.

        Args:
            content: the plan's fields.
            where: what the message calls the place that they were written in.

        Returns:
            The plan.

        Raises:
            PlanError: if a key is unknown or a value cannot be.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise PlanError(f"{where}: {_in_words(error)}") from error

    def grid(self) -> Iterator[tuple[TaskPlan, str, str, int]]:
        """Yield task, model, method and seed of every run; all methods of a seed before the next seed."""
        for task, model, seed, method in itertools.product(self.tasks, self.models, self.seeds, self.methods):
            yield task, model, method, seed


def load_plan(path: Path) -> Plan:
    """Read a plan from a YAML file.

    Args:
        path: the file.

    Returns:
        The plan; file names in it are relative to the file.

    Raises:
        PlanError: if it cannot be read, or holds an unknown key or a value that cannot be.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PlanError(f"the plan '{path}' cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise PlanError(f"the plan '{path}' must be a mapping with the keys {', '.join(Plan.model_fields)}")
    plan = Plan.checked(content, where=f"the plan '{path}'")
    tasks = tuple(_relative(task, path.parent) for task in plan.tasks)
    models = tuple(str(path.parent / model) if (path.parent / model).is_dir() else model for model in plan.models)
    return plan.model_copy(update={"tasks": tasks, "models": models})


def _relative(task: TaskPlan, folder: Path) -> TaskPlan:
    files = {
        key: folder / value for key in ("data", "train", "validation") if (value := getattr(task, key)) is not None
    }
    return task.model_copy(update=files)


def _in_words(error: ValidationError) -> str:
    # A mistyped key makes two errors: one too many, and the right one missing. The first says more.
    first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    key = ".".join(str(bit) for bit in first["loc"])
    if first["type"] == "extra_forbidden":
        models: dict[str, type[BaseModel]] = {"training": Training, "tasks": TaskPlan, "measures": Measures}
        model = models.get(str(first["loc"][0]), Plan)
        return unknown_name("key", str(first["loc"][-1]), model.model_fields)
    message = first["msg"].removeprefix("Value error, ")
    return f"{key}: {message[0].lower()}{message[1:]}" + (
        "" if isinstance(first["input"], dict) else f" (given: {_shown(first['input'])})"
    )


def _shown(given: object) -> str:
    return "NaN" if isinstance(given, float) and math.isnan(given) else repr(given)
