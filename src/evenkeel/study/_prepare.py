"""Data and models of a run, read once in each process and shared by the runs that follow."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from evenkeel.errors import DataError
from evenkeel.models import ModelSource, find_model, load_tokenizer, longest_text
from evenkeel.study._inputs import Inputs, read_inputs
from evenkeel.study._language import tokenised
from evenkeel.study._plan import TaskPlan
from evenkeel.tasks import TaskData, load_task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

__all__ = ["Prepared", "load_data", "locate_model", "prepare"]


@dataclass(frozen=True, kw_only=True)
class Prepared(Inputs):
    """A task tokenised for a model.

    Attributes:
        model: where the model is.
        tokenizer: the model's tokenizer.
    """

    model: ModelSource
    tokenizer: PreTrainedTokenizerBase


@lru_cache(maxsize=8)
def load_data(task: TaskPlan) -> TaskData:
    """Load a task's data, once in this process."""
    return load_task(task.source())


@lru_cache(maxsize=8)
def locate_model(name: str) -> ModelSource:
    """Find a model, once in this process: hashing its weights takes time."""
    return find_model(name)


@lru_cache(maxsize=4)
def prepare(task: TaskPlan, model: str, max_length: int, inputs: Path | None = None) -> Prepared:
    """Load data, model and tokenizer, and tokenise.

    Args:
        task: the task.
        model: name, folder or hub id.
        max_length: longer texts are cut, in tokens; what the model takes is the limit in any case.
        inputs: where the same was written before, to be read from there; None loads and tokenises.

    Returns:
        What a run needs.

    Raises:
        DataError: if the data is wrong, or a text has no tokens.
        ModelError: if the model or its tokenizer cannot be found or loaded.
    """
    source = locate_model(model)
    tokenizer = load_tokenizer(source)
    if inputs is None:
        found = _made(task, tokenizer, min(max_length, longest_text(source, tokenizer)))
    else:
        found = read_inputs(inputs)
    if found.data.problem == "causal-lm":
        tokenizer.padding_side = "right"  # in training; whoever generates pads on the left itself
    return Prepared(data=found.data, max_length=found.max_length, parts=found.parts, model=source, tokenizer=tokenizer)


def _made(task: TaskPlan, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Inputs:
    data = load_data(task)
    made = tokenised if data.problem == "causal-lm" else _tokenised
    parts = {"train": data.train, **data.scored}
    return Inputs(
        data=data,
        max_length=max_length,
        parts={name: made(part, tokenizer, max_length, f"{task.name}, {name}") for name, part in parts.items()},
    )


def _tokenised(part: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, where: str) -> Dataset:
    columns = [name for name in ("text", "text_pair") if name in part.column_names]
    for name in columns:
        for row, ids in enumerate(tokenizer(part[name][:], add_special_tokens=False)["input_ids"], start=1):
            if not ids:
                raise DataError(
                    f"{where}: the text {part[name][row - 1]!r} of example {row} tokenises to nothing; correct it or "
                    f"drop it"
                )
    encoded = tokenizer(*(part[name][:] for name in columns), truncation=True, max_length=max_length)
    kept = {name: encoded[name] for name in tokenizer.model_input_names if name in encoded}
    lengths = [len(ids) for ids in encoded["input_ids"]]
    return type(part).from_dict({**kept, "label": part["label"][:], "length": lengths})
