"""What a fine-tuned model says of the parts that it was not trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding, Trainer

from evenkeel.study._language import generated, likelihoods, written
from evenkeel.study._prepare import Prepared
from evenkeel.study._scores import Said

__all__ = ["asked", "collator", "evaluated"]


def collator(prepared: Prepared) -> Any:
    """Return what makes a batch of the task's examples.

    Args:
        prepared: the task.

    Returns:
        A collator of transformers.
    """
    if prepared.data.problem == "causal-lm":
        return DataCollatorForSeq2Seq(prepared.tokenizer)
    return DataCollatorWithPadding(prepared.tokenizer)


def evaluated(trainer: Trainer, prepared: Prepared) -> dict[str, Said]:
    """Ask the model about every part that it is not trained on.

    Args:
        trainer: the Trainer, after training.
        prepared: the task.

    Returns:
        What it said of each part, in the order of the data.
    """
    return {part: asked(trainer, prepared, part) for part in prepared.parts if part != "train"}


def asked(trainer: Trainer, prepared: Prepared, part: str) -> Said:
    """Ask the model about one part.

    Args:
        trainer: the Trainer.
        prepared: the task.
        part: the part's name.

    Returns:
        What it said, in the order of the data.
    """
    ask = _answers if prepared.data.problem == "causal-lm" else _predict
    return ask(trainer, prepared, part)


def _predict(trainer: Trainer, prepared: Prepared, part: str) -> Said:
    data = prepared.parts[part]
    order = np.argsort(data["length"][:], kind="stable")  # batches of like lengths pad less
    # Grouping by length would also shuffle the batches of an evaluation, and lose track of which example is which.
    usual, trainer.args.train_sampling_strategy = trainer.args.train_sampling_strategy, "sequential"
    found = trainer.predict(data.select(order))
    trainer.args.train_sampling_strategy = usual
    outputs = found.predictions[0] if isinstance(found.predictions, tuple) else found.predictions
    outputs = outputs[np.argsort(order, kind="stable")]
    values = outputs[:, 0].astype(np.float64) if prepared.data.problem == "regression" else outputs.argmax(axis=1)
    return Said(labels=np.asarray(data["label"][:]), predictions=values, outputs=outputs)


def _answers(trainer: Trainer, prepared: Prepared, part: str) -> Said:
    model: Any = trainer.model
    rows, training = written(prepared.parts[part]), model.training
    model.eval()
    with trainer.compute_loss_context_manager():
        outputs = likelihoods(model, rows, prepared.max_length)
        asks = prepared.data.task.metric == "exact_match" and np.isfinite(outputs).all()
        texts = generated(model, prepared.tokenizer, rows, prepared.max_length) if asks else [""] * len(rows)
    model.train(training)
    labels = np.asarray(prepared.data.scored[part]["label"][:])
    return Said(labels=labels, predictions=np.asarray(texts), outputs=outputs)
