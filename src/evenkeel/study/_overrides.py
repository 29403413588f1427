"""Fields of TrainingArguments that a plan may set itself, and those that the study decides."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from evenkeel.errors import unknown_name
from evenkeel.study._faults import shown

__all__ = ["GOVERNED", "checked_overrides"]

_SEEDS = "seeds come from the plan: see seeds and vary"
_EVALUATION = "a run is evaluated by the study, once it has ended"
_CHECKPOINTS = "checkpoints are the study's, which resumes runs itself"
_PUBLISHING = "a study publishes nothing, and a token would stand in its record"
_SPREADING = "how a run is spread over devices is the engine's to say"
_TALK = "what is shown is the study's to say"
_REPORTING = "no result depends on it; write it under measures"

# By name, why it cannot be overridden.
GOVERNED: Mapping[str, str] = {
    "output_dir": "the study names its folders",
    "run_name": "runs are named by the study",
    "seed": _SEEDS,
    "data_seed": _SEEDS,
    "learning_rate": "write training.learning_rate",
    "num_train_epochs": "write training.epochs",
    "per_device_train_batch_size": "write training.batch_size",
    "auto_find_batch_size": "another batch size is another run; write training.batch_size",
    "weight_decay": "write training.weight_decay",
    "warmup_steps": "write training.warmup",
    "bf16": "write training.precision",
    "fp16": "write training.precision",
    "train_sampling_strategy": "write training.group_by_length",
    "length_column_name": "the study makes the columns",
    "remove_unused_columns": "the study makes the columns",
    "label_names": "the study makes the columns",
    "max_grad_norm": "methods say how gradients are clipped: name one, such as global-clip:max_norm=1",
    "logging_strategy": "the log shows whether a run diverges; write logging_steps for another interval",
    "logging_nan_inf_filter": "a loss that is no number must be seen",
    "report_to": _REPORTING,
    "project": _REPORTING,
    **dict.fromkeys(("disable_tqdm", "log_level", "log_level_replica", "log_on_each_node"), _TALK),
    **dict.fromkeys(
        (
            "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "prediction_loss_only", "batch_eval_metrics",
            "eval_do_concat_batches", "eval_use_gather_object", "include_for_metrics", "do_train", "do_eval",
            "do_predict",
        ),
        _EVALUATION,
    ),
    **dict.fromkeys(
        (
            "save_strategy", "save_steps", "save_total_limit", "save_only_model", "save_on_each_node",
            "enable_jit_checkpoint", "load_best_model_at_end", "metric_for_best_model", "greater_is_better",
            "resume_from_checkpoint", "restore_callback_states_from_checkpoint", "ignore_data_skip",
        ),
        _CHECKPOINTS,
    ),
    **dict.fromkeys(
        (
            "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push",
            "hub_revision", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id",
        ),
        _PUBLISHING,
    ),
    **dict.fromkeys(
        ("use_cpu", "local_rank", "parallelism_config", "fsdp", "fsdp_config", "deepspeed"), _SPREADING
    ),
}  # fmt: skip


@cache
def _known() -> Mapping[str, Any]:
    """Return the type of every field of TrainingArguments."""
    from transformers import TrainingArguments

    hints = get_type_hints(TrainingArguments)
    return {field.name: hints[field.name] for field in dataclasses.fields(TrainingArguments) if field.init}


def checked_overrides(given: Mapping[str, Any]) -> dict[str, Any]:
    """See that every name is a field of TrainingArguments that a plan may set, and every value of its type.

    Whether TrainingArguments takes all of them together is seen when they are made, see ``check_plan``.

    Args:
        given: fields and values, as read from YAML.

    Returns:
        The same, in the order of names, each value in its type: ``1e-6``, which YAML takes for text, is a number.

    Raises:
        ValueError: if one cannot be.

    Example:
        >>> checked_overrides({"adam_epsilon": "1e-6", "adam_beta2": 1})
        {'adam_beta2': 1.0, 'adam_epsilon': 1e-06}
    """
    return {name: _checked(name, given[name]) for name in sorted(given)}


def _checked(name: str, value: Any) -> Any:
    known = _known()
    if name in GOVERNED:
        raise ValueError(f"{name} cannot be overridden: {GOVERNED[name]}")
    if name not in known:
        raise ValueError(unknown_name("field of TrainingArguments", name, set(known) - set(GOVERNED)))
    kind = TypeAdapter(known[name])
    try:
        return kind.dump_python(kind.validate_python(value), mode="json")
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise ValueError(f"{name}: {message[0].lower()}{message[1:]} (given: {shown(value)})") from error
