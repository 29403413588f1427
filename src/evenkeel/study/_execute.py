"""One run, from its specification to its result."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import transformers
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from evenkeel.errors import DataError
from evenkeel.integrations.transformers import MethodTrainer, Recorder
from evenkeel.methods import parse_mix
from evenkeel.models import load_model
from evenkeel.study._checkpoints import Checkpointing, RunCheckpoints, keeping
from evenkeel.study._course import ScoreCourse, course_table
from evenkeel.study._evaluate import collator, evaluated
from evenkeel.study._measured import measured
from evenkeel.study._meter import Meter
from evenkeel.study._order import DataOrder
from evenkeel.study._plan import Measures, RunSpec, TaskPlan
from evenkeel.study._prepare import Prepared, prepare
from evenkeel.study._provenance import provenance
from evenkeel.study._rank_draws import RankDraws
from evenkeel.study._replacement import PretrainedLayers, replacement_table
from evenkeel.study._reporting import reporting, run_name
from evenkeel.study._scores import predictions_table, scores
from evenkeel.study._sharding import keep_sharding, save_whole, shard, spent_together

__all__ = ["RunResult", "execute", "training_arguments"]

_LOG_POINTS = 60  # points of a loss curve
_EVALUATION_BATCH = 64
_NOTHING_MORE = Measures()


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run gave.

    Attributes:
        diverged: whether the loss or the predictions became NaN or infinite.
        outcome: scores and their baselines, failure by both lines, times, provenance; plain JSON values.
        tables: ``log`` (step, loss, learning rate), ``telemetry`` (see ``docs/measures.md``), ``predictions``; and
            ``replacement``, where it was asked for.
    """

    diverged: bool
    outcome: Mapping[str, Any]
    tables: Mapping[str, pa.Table]


class _StopWhenDiverged(TrainerCallback):
    """Ends a training whose loss is no number any more; nothing it could do later would count."""

    def __init__(self) -> None:
        self.diverged = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            self.diverged = True
            control.should_training_stop = True


def execute(
    spec: RunSpec,
    task: TaskPlan,
    *,
    model: str,
    measures: Measures = _NOTHING_MORE,
    save_to: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    checkpointing: Checkpointing | None = None,
    inputs: Path | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> RunResult:
    """Train and evaluate one run; in each of its processes, where several share it.

    Args:
        spec: the run.
        task: where its task's data is.
        model: where its model is, as the plan names it.
        measures: what to measure beside what every run records.
        save_to: a folder to save the fine-tuned model and its tokenizer in, unless it diverged; None keeps nothing.
        callbacks: more callbacks for the Trainer.
        checkpointing: where and how often to keep a checkpoint, and to look for one to go on from; None keeps none.
        inputs: where the task's data and tokens were written to; None reads and tokenises.
        stopping: asked now and then where checkpoints are kept; once it says yes, the run leaves one and stops.

    Returns:
        The result; a run that diverged is a result too.

    Raises:
        DataError: if data or model are not those that the specification was made from.
        EngineError: if the run is one of several processes, and this is not one of them.
        RunStopped: if it stopped because ``stopping`` said so.
    """
    prepared = prepare(task, model, spec.training.max_length, inputs)
    if (prepared.data.fingerprint, prepared.model.fingerprint) != (spec.data_fingerprint, spec.model_fingerprint):
        raise DataError(
            f"the files of task {spec.task} or model {spec.model} were changed while the study ran; put them back "
            f"and start "
            "the same command again, or begin a new study"
        )
    meter = Meter()
    with _scratch(spec, checkpointing, stopping, meter) as (scratch, kept):
        classifier = _classifier(spec, prepared)
        layers = PretrainedLayers(classifier) if measures.layer_replacement else None
        listening = [*callbacks, layers] if layers else callbacks
        with reporting(spec, measures.report_to):
            trainer, recorder, watch = _trainer(spec, prepared, classifier, scratch, listening, measures)
            if measures.evaluations:
                trainer.add_callback(ScoreCourse(trainer, prepared, measures.evaluations))
            made_with = _made_with(spec, trainer)
            _train(trainer, kept, made_with, layers=layers)
        said = evaluated(trainer, prepared)
        diverged = watch.diverged or not all(found.finite for found in said.values())
        if save_to is not None and not diverged and spec.processes > 1:
            save_whole(trainer, save_to)
        elif save_to is not None and not diverged:
            trainer.save_model(str(save_to))
            (save_to / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nobody should have to trust
    spent = kept.spent() if kept else meter.spent()
    if spec.processes > 1:
        spent = spent_together(spent)
    tables = {
        "log": _log(trainer.state),
        "telemetry": recorder.telemetry.table(),
        "predictions": predictions_table(prepared.data, said),
    }
    outcome = {
        **scores(prepared.data, said, diverged=diverged),
        **measured(tables["telemetry"], tables["log"], steps=trainer.state.max_steps),
        "steps": trainer.state.global_step,
        "wall_seconds": round(spent.wall_seconds, 3),
        "cpu_seconds": round(spent.cpu_seconds, 3),
        "peak_memory": dict(spent.peak_memory),
        "provenance": made_with,
    }
    course = course_table(trainer.state)
    if course is not None:
        tables["course"] = course
    if layers is not None:  # after the clock was read: it is no part of what the method costs
        tables["replacement"] = replacement_table(
            classifier, layers.weights, partial(evaluated, trainer, prepared), data=prepared.data
        )
    return RunResult(diverged=diverged, outcome=outcome, tables=tables)


@contextmanager
def _scratch(
    spec: RunSpec, checkpointing: Checkpointing | None, stopping: Callable[[], bool], meter: Meter
) -> Iterator[tuple[str, RunCheckpoints | None]]:
    """Make a folder for what the Trainer writes: one that goes, or one that checkpoints are kept from."""
    if checkpointing is None:
        with tempfile.TemporaryDirectory(prefix="evenkeel-") as scratch:
            yield scratch, None
        return
    with keeping(checkpointing, run=spec.id, stopping=stopping, meter=meter) as kept:
        yield str(kept.output_dir), kept


def _train(
    trainer: MethodTrainer,
    kept: RunCheckpoints | None,
    made_with: Mapping[str, Any],
    *,
    layers: PretrainedLayers | None,
) -> None:
    """Train, from the last checkpoint on where there is one."""
    if kept is None:
        trainer.train()
        return
    trainer.add_callback(kept)  # the last one: others write into a checkpoint first
    trainer.train(resume_from_checkpoint=kept.find(made_with, layers=layers))
    kept.finish()


def _made_with(spec: RunSpec, trainer: MethodTrainer) -> dict[str, Any]:
    """Say what a run is made with and from, in one place; the specification says the rest."""
    return {
        **provenance(trainer.args.device),
        "precision": spec.training.precision,
        **({"processes": spec.processes} if spec.processes > 1 else {}),
        "data": spec.data_fingerprint,
        "model": spec.model_fingerprint,
    }


def _classifier(spec: RunSpec, prepared: Prepared) -> PreTrainedModel:
    set_seed(spec.seed)
    init_seed = spec.seed if spec.init_seed is None else spec.init_seed
    return load_model(prepared.model, prepared.data.classes, seed=init_seed)


def _trainer(
    spec: RunSpec,
    prepared: Prepared,
    model: PreTrainedModel,
    scratch: str,
    callbacks: Sequence[TrainerCallback],
    measures: Measures,
) -> tuple[MethodTrainer, Recorder, _StopWhenDiverged]:
    recorder, watch = Recorder(every=spec.training.record_every), _StopWhenDiverged()
    ordered: list[TrainerCallback] = [] if spec.order_seed is None else [DataOrder(spec.order_seed)]
    arguments = training_arguments(spec, scratch, examples=len(prepared.parts["train"]), measures=measures)
    if spec.processes > 1:
        shard(model, arguments.device, spec.processes)
        ordered.append(RankDraws(spec.training.batch_size))
    trainer = MethodTrainer(
        model,
        arguments,
        methods=parse_mix(spec.method).methods,
        train_dataset=prepared.parts["train"],
        processing_class=prepared.tokenizer,
        data_collator=collator(prepared),
        callbacks=[recorder, watch, *ordered, *callbacks],
    )
    if spec.processes > 1:
        keep_sharding(trainer)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer, recorder, watch


def training_arguments(
    spec: RunSpec, scratch: str, *, examples: int, measures: Measures = _NOTHING_MORE
) -> TrainingArguments:
    """Return the Trainer's arguments for a run.

    Args:
        spec: the run.
        scratch: a folder for what the Trainer writes.
        examples: how many there are to train on.
        measures: where its log is to go.

    Returns:
        The arguments: those of the recipe, and over them what the plan overrides.
    """
    recipe, accumulated = spec.training, spec.overrides.get("gradient_accumulation_steps", 1)
    most = spec.overrides.get("max_steps", -1)
    steps = most if most > 0 else math.ceil(examples / recipe.batch_size) * recipe.epochs
    arguments = partial(
        TrainingArguments,
        output_dir=scratch,
        learning_rate=recipe.learning_rate,
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size // accumulated // spec.processes,
        per_device_eval_batch_size=_EVALUATION_BATCH,
        weight_decay=recipe.weight_decay,
        warmup_steps=recipe.warmup,
        lr_scheduler_type=recipe.schedule,
        bf16=recipe.precision == "bf16",
        fp16=recipe.precision == "fp16",
        train_sampling_strategy="group_by_length" if recipe.group_by_length else "random",
        length_column_name="length",
        seed=spec.seed,
        data_seed=spec.order_seed,
        logging_steps=max(1, int(steps / _LOG_POINTS)),
        logging_nan_inf_filter=False,  # a loss that is no number is what we look for
        save_strategy="no",
        report_to=list(measures.report_to),
        run_name=run_name(spec),
        project=measures.project or "evenkeel",
        disable_tqdm=True,
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=torch.accelerator.is_available(),
    )
    return arguments(**spec.overrides)


def _log(state: TrainerState) -> pa.Table:
    rows = [entry for entry in state.log_history if "loss" in entry]
    return pa.table(
        {
            "step": pa.array([row["step"] for row in rows], pa.int32()),
            "epoch": pa.array([row["epoch"] for row in rows], pa.float64()),
            "loss": pa.array([row["loss"] for row in rows], pa.float64()),
            "learning_rate": pa.array([row["learning_rate"] for row in rows], pa.float64()),
        }
    )
