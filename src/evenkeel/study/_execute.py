"""One run, from its specification to its result."""

from __future__ import annotations

import math
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from evenkeel.clipping import cpu
from evenkeel.errors import DataError
from evenkeel.integrations.transformers import MethodTrainer, Recorder
from evenkeel.methods import parse_mix
from evenkeel.models import load_classifier
from evenkeel.stats import failed
from evenkeel.study._plan import Measures, RunSpec, TaskPlan
from evenkeel.study._prepare import Prepared, prepare
from evenkeel.study._replacement import PretrainedLayers, replacement_table
from evenkeel.tasks import majority_score, score

__all__ = ["RunResult", "execute"]

_LOG_POINTS = 60  # points of a loss curve
_EVALUATION_BATCH = 64
_NOTHING_MORE = Measures()


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run gave.

    Attributes:
        diverged: whether the loss or the predictions became NaN or infinite.
        outcome: scores and their baselines, failure by both lines, times, provenance; plain JSON values.
        tables: ``log`` (step, loss, learning rate), ``norms`` (see ``GradientNorms``), ``predictions``; and
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
) -> RunResult:
    """Train and evaluate one run.

    Args:
        spec: the run.
        task: where its task's data is.
        model: where its model is, as the plan names it.
        measures: what to measure beside what every run records.
        save_to: a folder to save the fine-tuned model and its tokenizer in, unless it diverged; None keeps nothing.
        callbacks: more callbacks for the Trainer.

    Returns:
        The result; a run that diverged is a result too.

    Raises:
        DataError: if data or model are not those that the specification was made from.
    """
    prepared = prepare(task, model, spec.training.max_length)
    if (prepared.data.fingerprint, prepared.model.fingerprint) != (spec.data_fingerprint, spec.model_fingerprint):
        raise DataError(
            f"the files of task {spec.task} or model {spec.model} were changed while the study ran; put them back "
            f"and start "
            "the same command again, or begin a new study"
        )
    started, started_cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory(prefix="evenkeel-") as scratch:
        classifier = _classifier(spec, prepared)
        layers = PretrainedLayers(classifier) if measures.layer_replacement else None
        listening = [*callbacks, layers] if layers else callbacks
        trainer, recorder, watch = _trainer(spec, prepared, classifier, scratch, listening)
        trainer.train()
        evaluated = _evaluated(trainer, prepared)
        diverged = watch.diverged or not all(np.isfinite(logits).all() for _, logits in evaluated.values())
        if save_to is not None and not diverged:
            trainer.save_model(str(save_to))
            (save_to / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nobody should have to trust
    outcome = {
        **_scores(prepared.data.task.metric, evaluated, diverged=diverged),
        "steps": trainer.state.global_step,
        "wall_seconds": round(time.perf_counter() - started, 3),
        "cpu_seconds": round(time.process_time() - started_cpu, 3),
        "provenance": provenance(trainer.args.device),
    }
    tables = {"log": _log(trainer.state), "norms": recorder.norms.table(), "predictions": _predictions(evaluated)}
    if layers is not None:  # after the clock was read: it is no part of what the method costs
        tables["replacement"] = replacement_table(
            classifier, layers.weights, partial(_evaluated, trainer, prepared), metric=prepared.data.task.metric
        )
    return RunResult(diverged=diverged, outcome=outcome, tables=tables)


def _classifier(spec: RunSpec, prepared: Prepared) -> PreTrainedModel:
    set_seed(spec.seed)
    return load_classifier(prepared.model, prepared.data.classes, seed=spec.seed)


def _trainer(
    spec: RunSpec, prepared: Prepared, model: PreTrainedModel, scratch: str, callbacks: Sequence[TrainerCallback]
) -> tuple[MethodTrainer, Recorder, _StopWhenDiverged]:
    recorder, watch = Recorder(every=spec.training.record_every), _StopWhenDiverged()
    trainer = MethodTrainer(
        model,
        _arguments(spec, scratch, examples=len(prepared.parts["train"])),
        methods=parse_mix(spec.method).methods,
        train_dataset=prepared.parts["train"],
        processing_class=prepared.tokenizer,
        data_collator=DataCollatorWithPadding(prepared.tokenizer),
        callbacks=[recorder, watch, *callbacks],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer, recorder, watch


def _arguments(spec: RunSpec, scratch: str, *, examples: int) -> TrainingArguments:
    recipe = spec.training
    steps = math.ceil(examples / recipe.batch_size) * recipe.epochs
    return TrainingArguments(
        output_dir=scratch,
        learning_rate=recipe.learning_rate,
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=_EVALUATION_BATCH,
        weight_decay=recipe.weight_decay,
        warmup_steps=recipe.warmup,
        lr_scheduler_type=recipe.schedule,
        bf16=recipe.precision == "bf16",
        fp16=recipe.precision == "fp16",
        train_sampling_strategy="group_by_length" if recipe.group_by_length else "random",
        length_column_name="length",
        seed=spec.seed,
        logging_steps=max(1, int(steps / _LOG_POINTS)),
        logging_nan_inf_filter=False,  # a loss that is no number is what we look for
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=torch.accelerator.is_available(),
    )


def _evaluated(trainer: MethodTrainer, prepared: Prepared) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return labels and logits of every part that is not trained on."""
    return {name: _predict(trainer, prepared, name) for name in prepared.parts if name != "train"}


def _predict(trainer: MethodTrainer, prepared: Prepared, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return labels, shape ``[N]``, and logits, shape ``[N, classes]``, in the order of the data."""
    data = prepared.parts[part]
    order = np.argsort(data["length"][:], kind="stable")  # batches of like lengths pad less
    # Grouping by length would also shuffle the batches of an evaluation, and lose track of which example is which.
    trainer.args.train_sampling_strategy = "sequential"
    found = trainer.predict(data.select(order))
    logits = found.predictions[0] if isinstance(found.predictions, tuple) else found.predictions
    back = np.argsort(order, kind="stable")
    return np.asarray(data["label"][:]), logits[back]


def _scores(metric: str, evaluated: Mapping[str, tuple[np.ndarray, np.ndarray]], *, diverged: bool) -> dict[str, Any]:
    """Score every part; failure is judged on validation. A run that diverged has no score and has failed."""
    labels = {part: found[0].tolist() for part, found in evaluated.items()}
    predicted = {part: logits.argmax(axis=1).tolist() for part, (_, logits) in evaluated.items()}
    majority = {part: majority_score(metric, labels[part]) for part in evaluated}
    scores = {part: None if diverged else score(metric, labels[part], predicted[part]) for part in evaluated}
    accuracy = {part: None if diverged else score("accuracy", labels[part], predicted[part]) for part in evaluated}
    value = scores["validation"]
    return {
        "metric": metric,
        "scores": scores,
        "accuracy": accuracy,
        "majority": majority,
        "constant": not diverged and len(set(predicted["validation"])) == 1,
        "failed": diverged or failed(labels["validation"], predicted["validation"]),
        "failed_by_majority": value is None or value <= majority["validation"],
    }


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


def _predictions(evaluated: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> pa.Table:
    parts = [
        pa.table(
            {
                "part": pa.array([part] * len(labels)),
                "example": pa.array(range(len(labels)), pa.int32()),
                "label": pa.array(labels, pa.int32()),
                "prediction": pa.array(logits.argmax(axis=1), pa.int32()),
                "logits": pa.array(logits.tolist(), pa.list_(pa.float32())),
            }
        )
        for part, (labels, logits) in evaluated.items()
    ]
    return pa.concat_tables(parts)


def provenance(device: torch.device) -> dict[str, Any]:
    """Say what a run was made with: versions, device and threads; no path, name or token of the machine's owner.

    Args:
        device: what it ran on.

    Returns:
        Plain JSON values.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    packages = ["evenkeel", "torch", "transformers", "accelerate", "datasets"]
    if device.type == "cpu" and cpu.available():
        packages.append("numba")  # whose kernels round sums otherwise, in the last digit, than torch's operations
    return {
        "versions": {package: version(package) for package in packages},
        "python": platform.python_version(),
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
    }
