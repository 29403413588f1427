"""From what a model says to scores and the verdict whether a run failed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import pyarrow as pa
from scipy.special import logsumexp

from evenkeel.stats import failed, failed_regression, sign_flip_p
from evenkeel.study._language import partners
from evenkeel.tasks import METRICS, Problem, TaskData, majority_score, metrics_for, score

__all__ = ["Said", "judged", "predictions_table", "scores"]

_ALPHA = 0.05
_TYPES: Mapping[Problem, pa.DataType] = {
    "classification": pa.int32(),
    "regression": pa.float64(),
    "causal-lm": pa.string(),
}


@final
@dataclass(frozen=True, kw_only=True)
class Said:
    """What a model says of ``N`` examples.

    Attributes:
        labels: class numbers, values or answers, shape ``[N]``.
        predictions: likewise; empty texts where a language model was not asked to write.
        outputs: logits, shape ``[N, classes]``; ``[N, 1]`` for a regression; of a language model what
            :func:`~evenkeel.study._language.likelihoods` returns, ``[N, 4]``.
    """

    labels: np.ndarray
    predictions: np.ndarray
    outputs: np.ndarray

    @property
    def finite(self) -> bool:
        """Whether every output is a number."""
        return bool(np.isfinite(self.outputs).all())


def scores(data: TaskData, said: Mapping[str, Said], *, diverged: bool) -> dict[str, Any]:
    """Score every part, in the task's metric and in all that can be told; failure is judged on validation.

    Args:
        data: the task.
        said: what the model says of every part.
        diverged: whether the run diverged; then it has no score, and has failed.

    Returns:
        Plain JSON values: ``metric``; by part ``scores`` and ``majority``, the score of a constant prediction, and for
        classes ``accuracy``; by part and metric ``all_scores`` and ``all_majority``; ``constant``, ``failed`` and
        ``failed_by_majority``.
    """
    metric, names = data.task.metric, _names(data)
    majority = {part: {name: _majority(name, found) for name in names} for part, found in said.items()}
    every = {part: {name: None if diverged else _score(name, found) for name in names} for part, found in said.items()}
    value = every["validation"][metric]
    accuracy = {part: found["accuracy"] for part, found in every.items() if "accuracy" in found}
    return {
        "metric": metric,
        "scores": {part: found[metric] for part, found in every.items()},
        **({"accuracy": accuracy} if accuracy else {}),
        "majority": {part: found[metric] for part, found in majority.items()},
        "all_scores": every,
        "all_majority": majority,
        "constant": not diverged and _constant(data, said["validation"]),
        "failed": diverged or _failed(data, said["validation"]),
        "failed_by_majority": value is None or value <= majority["validation"][metric],
    }


def judged(data: TaskData, said: Said) -> dict[str, Any]:
    """Judge what a model says of one part.

    Args:
        data: the task.
        said: what it says.

    Returns:
        ``score`` in the task's metric; ``loss``, the mean cross-entropy in nats (of an answer's token, where answers
        are written), or the mean squared error of a regression; ``failed``. Where an output is NaN or infinite, score
        and loss are None and ``failed`` is true.
    """
    if not said.finite:
        return {"score": None, "loss": None, "failed": True}
    return {"score": _score(data.task.metric, said), "loss": _loss(data.problem, said), "failed": _failed(data, said)}


def predictions_table(data: TaskData, said: Mapping[str, Said]) -> pa.Table:
    """Return what was predicted.

    Args:
        data: the task.
        said: what the model says of every part.

    Returns:
        A row for each example of each part: ``part``; ``example``, its place in the data from 0; ``label`` and
        ``prediction``, class numbers, values or answers; ``logits``, the outputs.
    """
    kind = _TYPES[data.problem]
    parts = [
        pa.table(
            {
                "part": pa.array([part] * len(found.labels)),
                "example": pa.array(range(len(found.labels)), pa.int32()),
                "label": pa.array(found.labels, kind),
                "prediction": pa.array(found.predictions, kind),
                "logits": pa.array(found.outputs.tolist(), pa.list_(pa.float32())),
            }
        )
        for part, found in said.items()
    ]
    return pa.concat_tables(parts)


def _names(data: TaskData) -> tuple[str, ...]:
    """Return the metrics that can be told; answers are compared only where they were asked for."""
    found = metrics_for(data.problem, len(data.classes or ()))
    return tuple(name for name in found if name != "exact_match" or name == data.task.metric)


def _score(metric: str, said: Said) -> float:
    if METRICS[metric].compute is None:
        likelihood, tokens = said.outputs[:, 0].sum(), said.outputs[:, 1].sum()
        return math.exp(likelihood / tokens)
    return score(metric, said.labels.tolist(), said.predictions.tolist())


def _majority(metric: str, said: Said) -> float:
    if METRICS[metric].compute is None:  # every token as likely as it is frequent, whatever was asked
        return math.exp(said.outputs[:, 2].sum() / said.outputs[:, 1].sum())
    return majority_score(metric, said.labels.tolist())


def _loss(problem: Problem, said: Said) -> float:
    outputs = said.outputs.astype(np.float64)
    if problem == "causal-lm":
        return float(-outputs[:, 0].sum() / outputs[:, 1].sum())
    if problem == "regression":
        return float(np.square(outputs[:, 0] - said.labels).mean())
    return float((logsumexp(outputs, axis=1) - outputs[np.arange(len(outputs)), said.labels]).mean())


def _constant(data: TaskData, said: Said) -> bool:
    written = METRICS[data.task.metric].compute is not None  # where a language model was not asked, nothing is
    return written and len(set(said.predictions.tolist())) == 1


def _failed(data: TaskData, said: Said) -> bool:
    labels, predictions = said.labels.tolist(), said.predictions.tolist()
    if data.problem == "causal-lm":
        return _constant(data, said) or _alike_after_any_prompt(said.outputs) > _ALPHA
    return (failed_regression if data.problem == "regression" else failed)(labels, predictions)


def _alike_after_any_prompt(outputs: np.ndarray) -> float:
    """Return the p value of answers being likelier after their own prompts than after those of their partners.

    Where answers have nothing to do with prompts, the two prompts of a pair can be exchanged, which turns the sign of
    the pair's difference.
    """
    others = partners(len(outputs))
    gained = outputs[:, 0] - outputs[:, 3]
    first = np.arange(len(outputs)) < others
    return sign_flip_p((gained + gained[others])[first])
