"""What a run is, and the sections of a plan that say it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from evenkeel.study._reporting import checked_places
from evenkeel.tasks import TaskSource

__all__ = [
    "STORED",
    "CheckpointPlan",
    "Frozen",
    "Measures",
    "PlannedRun",
    "Resources",
    "RunSpec",
    "TaskPlan",
    "Training",
]

STORED = "stored"  # the context of a validation that takes names and versions of another machine

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]


class Frozen(BaseModel):
    """Values that cannot be changed and know no other keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Training(Frozen):
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
    precision: Literal["float32", "bf16", "fp16", "auto"] = Field(
        default="float32", description="autocast; weights are float32; auto suits the device, and runs name what it was"
    )
    group_by_length: bool = Field(
        default=True, description="batches of like lengths: faster, another order of the data"
    )
    record_every: Count = Field(default=10, description="record gradient norms each so many steps")


class TaskPlan(Frozen):
    """A task and where its data is; the fields are those of :class:`evenkeel.tasks.TaskSource`."""

    name: str
    data: Path | None = None
    train: Path | None = None
    validation: Path | None = None
    test: Path | None = None
    text: tuple[str, ...] | None = None
    label: str | None = None
    metric: str | None = None
    max_train_samples: Count | None = None
    test_split: Literal["half"] | None = None
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None

    def source(self) -> TaskSource:
        """Return the same as the tasks know it."""
        return TaskSource(**self.model_dump())


class Measures(Frozen):
    """What runs measure beside what they always record; no run's result depends on it, so it is no part of a run.

    It holds for the runs that are still to be done. What was finished before stays as it is, with or without.
    """

    layer_replacement: bool = Field(
        default=False, description="put pretrained weights back into the top k layers, and evaluate, for every k"
    )
    evaluations: Annotated[int, Field(ge=0)] = Field(
        default=0, description="score the validation part so many times in training, and after each phase"
    )
    report_to: tuple[str, ...] = Field(
        default=(), description="where the Trainer sends its log: tensorboard, wandb, mlflow, trackio"
    )
    project: str | None = Field(default=None, description="the project there")

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [] if value in ("none", None) else [value] if isinstance(value, str) else value

    @field_validator("report_to")
    @classmethod
    def _known_places(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        return value if info.context == STORED else checked_places(value)


class CheckpointPlan(Frozen):
    """How often a run keeps a checkpoint that it can go on from, exactly; no run's result depends on it."""

    every_minutes: Positive | None = Field(default=None, description="minutes between two checkpoints of a run")
    every_steps: Count | None = Field(default=None, description="optimizer steps between two checkpoints of a run")
    keep: bool = Field(default=False, description="keep the last checkpoint of a run that ended")

    @property
    def wanted(self) -> bool:
        """Whether there are to be any."""
        return self.every_minutes is not None or self.every_steps is not None


class Resources(Frozen):
    """What the engine sets aside for each run; no part of a run, though sums round otherwise on more threads."""

    cpus: Positive = Field(default=1.0, description="cores of a run, and its threads; 0.5 lets two runs share one")
    gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        default=None, description="GPUs of a run, 0.25 lets four runs share one; unset: 1 where there are any"
    )

    runs_per_gpu: Count | Literal["auto"] | None = Field(
        default=None, description="runs that share a GPU; auto: as many as fit, by measured memory (local engine)"
    )
    processes_per_run: Count = Field(
        default=1,
        description="processes that share a run too large for one device; each has the cpus and a GPU; this one number "
        "is a part of the run",
    )

    @property
    def sharing(self) -> int | Literal["auto"]:
        """How many runs share a GPU, by whichever of the two fields says so."""
        if self.runs_per_gpu is not None:
            return self.runs_per_gpu
        return int(1 / self.gpus + 1e-9) if self.gpus and self.gpus < 1 else 1

    @property
    def run_cpus(self) -> float:
        """Cores of all processes of a run."""
        return self.cpus * self.processes_per_run

    @property
    def run_gpus(self) -> float | None:
        """GPUs of all processes of a run; None where the engine decides."""
        return None if self.gpus is None else self.gpus * self.processes_per_run

    @property
    def threads(self) -> int:
        """How many threads a process of a run has."""
        return max(1, int(self.cpus))

    @field_validator("gpus")
    @classmethod
    def _whole_or_a_share(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and value != int(value):
            raise ValueError("several GPUs must be a whole number, and a share of one is less than 1")
        return value

    @model_validator(mode="after")
    def _said_once(self) -> Resources:
        if self.gpus is not None and self.runs_per_gpu is not None:
            raise ValueError("gpus and runs_per_gpu both say how many runs share a GPU; keep one of them")
        shares = self.runs_per_gpu not in (None, 1) or self.gpus not in (None, 0, 1)
        if self.processes_per_run > 1 and shares:
            raise ValueError(
                f"each of the {self.processes_per_run} processes of a run (processes_per_run) has one GPU to itself; "
                "leave runs_per_gpu out, and let gpus be 1, or 0 for none"
            )
        return self


class RunSpec(Frozen):
    """One run: everything that its result depends on, and nothing else."""

    task: str
    metric: str
    data_fingerprint: str
    model: str
    model_fingerprint: str
    method: str
    seed: int
    training: Training
    init_seed: int | None = Field(default=None, description="of the new head, where it is not the seed")
    order_seed: int | None = Field(default=None, description="of the order of the data, where it is not the seed")
    split_seed: int | None = Field(default=None, description="of training and validation part, where they are drawn")
    overrides: dict[str, Any] = Field(default={}, description="fields of TrainingArguments")
    processes: Count = Field(default=1, description="processes that share the run, each with dropout of its own")

    @property
    def id(self) -> str:
        """Hash of the canonical specification, 16 hexadecimal digits.

        What came later than the first version of evenkeel counts only where it says something, so that the runs of
        older studies keep their names.
        """
        said = self.model_dump(mode="json", exclude=self._silent())
        canonical = json.dumps(said, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def _silent(self) -> set[str]:
        later = ("init_seed", "order_seed", "split_seed", "overrides", "processes")
        return {name for name in later if getattr(self, name) == type(self).model_fields[name].default}

    @property
    def draw(self) -> int | str:
        """What tells the run from others of its method: the seed, or those that are varied apart."""
        apart = {"init": self.init_seed, "order": self.order_seed, "split": self.split_seed}
        return ", ".join(f"{name} {seed}" for name, seed in apart.items() if seed is not None) or self.seed

    @property
    def draw_in_words(self) -> str:
        """The same for people: ``seed 3``, ``init 1, order 2``."""
        return f"seed {self.draw}" if isinstance(self.draw, int) else self.draw


class PlannedRun(NamedTuple):
    """A run as the plan knows it, before data and model were looked at."""

    task: TaskPlan
    model: str
    method: str
    seed: int
    init_seed: int | None
    order_seed: int | None
    split_seed: int | None
    training: Training
    overrides: dict[str, Any]
