"""What a study is to do: tasks x models x methods x seeds x recipes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator, model_validator

from evenkeel.errors import PlanError
from evenkeel.study._amend import amended
from evenkeel.study._choose import chosen, refuse_rules, renamed
from evenkeel.study._faults import faults_of, refuse, shown
from evenkeel.study._overrides import checked_overrides
from evenkeel.study._reporting import REPORTING
from evenkeel.study._spec import (
    STORED,
    CheckpointPlan,
    Frozen,
    Measures,
    PlannedRun,
    Resources,
    RunSpec,
    TaskPlan,
    Training,
)
from evenkeel.study._sweep import checked_axis, expanded_methods, settings

__all__ = [
    "CheckpointPlan",
    "Measures",
    "Plan",
    "PlannedRun",
    "Resources",
    "RunSpec",
    "TaskPlan",
    "Training",
    "load_plan",
]

_MOST_SEEDS = 100_000  # as a count; a larger number was meant as a seed
_Draw = tuple[int, int | None, int | None, int | None]
_FIXED_SEED = 1  # of what is not varied, where the plan says what is


class Plan(Frozen):
    """A grid of runs; ``docs/studies.md`` shows how plans are written."""

    tasks: Annotated[tuple[TaskPlan, ...], Field(min_length=1)]
    models: Annotated[tuple[str, ...], Field(min_length=1)] = ("tiny",)
    methods: Annotated[tuple[str, ...], Field(min_length=1)] = ("full", "gradual-unfreezing", "component-clip")
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1)]
    vary: tuple[Literal["init", "order", "split"], ...] = Field(default=(), description="seeds vary these alone, apart")
    training: Training = Training()
    overrides: dict[str, Any] = Field(default={}, description="fields of TrainingArguments")
    sweep: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(
        default={}, description="values by training.FIELD, overrides.FIELD or METHOD.OPTION"
    )
    include: tuple[dict[str, Any], ...] = Field(default=(), description="only runs that one of these rules fits")
    exclude: tuple[dict[str, Any], ...] = Field(default=(), description="no runs that one of these rules fits")
    measures: Measures = Measures()
    retries: Annotated[int, Field(ge=0)] = Field(default=0, description="how often a run that raised is tried again")
    smaller_batches: bool = Field(
        default=False, description="let a run that runs out of memory alone be replaced by one of smaller micro-batches"
    )
    checkpoints: CheckpointPlan = CheckpointPlan()
    resources: Resources = Resources()

    @model_validator(mode="before")
    @classmethod
    def _reporting(cls, value: Any) -> Any:
        """Move report_to, which people look for in TrainingArguments, to what no result depends on."""
        overrides = value.get("overrides") if isinstance(value, dict) else None
        if not isinstance(overrides, dict) or not overrides.keys() & set(REPORTING):
            return value
        moved = {name: overrides[name] for name in REPORTING if name in overrides}
        rest = {name: given for name, given in overrides.items() if name not in moved}
        measures = value.get("measures") or {}
        measures = measures.model_dump() if isinstance(measures, Measures) else measures
        return {**value, "overrides": rest, "measures": {**measures, **moved}}

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

    @field_validator("overrides")
    @classmethod
    def _known_fields(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        return value if info.context == STORED else checked_overrides(value)

    @field_validator("sweep")
    @classmethod
    def _known_swept_fields(cls, value: dict[str, tuple[Any, ...]], info: ValidationInfo) -> dict[str, tuple[Any, ...]]:
        if info.context == STORED:
            return value
        fields = {key: key.partition(".")[2] for key in value if key.startswith("overrides.")}
        return value | {
            key: tuple(checked_overrides({field: one})[field] for one in value[key]) for key, field in fields.items()
        }

    @field_validator("methods", "seeds", "models", "tasks", "vary")
    @classmethod
    def _no_repeats(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [item.name if isinstance(item, TaskPlan) else item for item in value]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice!r} stands there twice")
        return value

    @model_validator(mode="after")
    def _expands(self) -> Plan:
        """See that sweeps and rules speak of what there is; the recipes that they make are checked by being made."""
        for key, values in self.sweep.items():
            checked_axis(key, self.methods, list(Training.model_fields))
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                raise ValueError(f"sweep.{key}: {shown(twice)} stands there twice")
        if "auto" in self.sweep.get("training.precision", ()):
            raise ValueError("sweep.training.precision: auto is one of the others; name those that you want to compare")
        self.recipes()
        if self.include or self.exclude:
            refuse_rules({"include": self.include, "exclude": self.exclude}, self._whole_grid())
        return self

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
            raise refuse(where, faults_of(error, cls, _SECTIONS)) from error

    @classmethod
    def stored(cls, text: str) -> Plan:
        """Read a plan back from a store; it may name what this machine, or its transformers, does not have.

        Args:
            text: the plan as JSON.

        Returns:
            The plan.
        """
        return cls.model_validate_json(text, context=STORED)

    def expanded_methods(self) -> list[str]:
        """Return the methods with the options that are swept written out."""
        return expanded_methods(self.methods, self.sweep)

    def recipes(self) -> list[tuple[Training, dict[str, Any]]]:
        """Return every recipe with its overrides; one, where nothing of them is swept."""
        trainings = [
            _sweepable(Training, {**self.training.model_dump(), **chosen})
            for chosen in settings(self.sweep, "training")
        ]
        overrides = [{**self.overrides, **chosen} for chosen in settings(self.sweep, "overrides")]
        return list(itertools.product(trainings, overrides))

    def grid(self) -> Iterator[PlannedRun]:
        """Yield every run; all methods and recipes of a seed before the next seed."""
        return (run for run in self._whole_grid() if chosen(run, self.include, self.exclude))

    def _whole_grid(self) -> Iterator[PlannedRun]:
        recipes, methods = self.recipes(), self.expanded_methods()
        places = itertools.product(self.tasks, self.models, self._draws(), recipes, methods)
        for task, model, (seed, init, order, split), (training, overrides), method in places:
            drawn = task if split is None else task.model_copy(update={"split_seed": split})
            yield PlannedRun(drawn, model, method, seed, init, order, drawn.split_seed, training, overrides)

    def _draws(self) -> list[_Draw]:
        """Return the seed, and those of head, order and split, of every draw: all combinations of what is varied."""
        if not self.vary:
            return [(seed, None, None, None) for seed in self.seeds]
        inits, orders, splits = (self.seeds if name in self.vary else (None,) for name in ("init", "order", "split"))
        return [(_FIXED_SEED, init, order, split) for split, init, order in itertools.product(splits, inits, orders)]


_SECTIONS: dict[str, type[BaseModel]] = {
    "training": Training,
    "tasks": TaskPlan,
    "measures": Measures,
    "checkpoints": CheckpointPlan,
    "resources": Resources,
}


def _sweepable(model: type[Training], content: dict[str, Any]) -> Training:
    """Make a recipe of a sweep; what is wrong with it is said of the plan as a whole."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"sweep: training.{faults_of(error, model, {})[0]}") from error


def load_plan(path: Path, changes: Sequence[str] = ()) -> Plan:
    """Read a plan from a YAML file.

    Args:
        path: the file.
        changes: replaced or added values, each ``key=value``: ``training.epochs=5``.

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
    where = f"the plan '{path}'" + "".join(f" with --set {change}" for change in changes)
    plan = Plan.checked(amended(content, changes), where=where)
    tasks = tuple(_relative(task, path.parent) for task in plan.tasks)
    folders = {model: str(path.parent / model) for model in plan.models if (path.parent / model).is_dir()}
    models = tuple(folders.get(model, model) for model in plan.models)
    rules = {key: tuple(renamed(rule, folders) for rule in getattr(plan, key)) for key in ("include", "exclude")}
    return plan.model_copy(update={"tasks": tasks, "models": models, **rules})


def _relative(task: TaskPlan, folder: Path) -> TaskPlan:
    files = {
        key: folder / value
        for key in ("data", "train", "validation", "test")
        if (value := getattr(task, key)) is not None
    }
    return task.model_copy(update=files)
