"""Scores of predictions, and what guessing scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from evenkeel.errors import DataError, unknown_name

__all__ = ["METRICS", "majority_score", "score"]

Metric = Callable[[Sequence[int], Sequence[int]], float]


def _f1(labels: Sequence[int], predictions: Sequence[int]) -> float:
    return float(f1_score(labels, predictions, zero_division=0.0))


def _macro_f1(labels: Sequence[int], predictions: Sequence[int]) -> float:
    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))


METRICS: dict[str, Metric] = {
    "accuracy": accuracy_score,
    "f1": _f1,  # of label 1, as GLUE has it
    "macro_f1": _macro_f1,
    "matthews": matthews_corrcoef,
}


def score(metric: str, labels: Sequence[int], predictions: Sequence[int]) -> float:
    """Score predictions.

    Args:
        metric: one of ``METRICS``.
        labels: the right labels, ``N`` of them.
        predictions: the predicted labels, ``N`` of them.

    Returns:
        The score; 1 is perfect.

    Raises:
        DataError: if the metric is unknown, or does not fit the number of classes.

    Example:
        >>> score("accuracy", [0, 1, 1], [0, 1, 0])
        0.6666666666666666
    """
    if metric not in METRICS:
        raise DataError(unknown_name("metric", metric, METRICS))
    if metric == "f1" and max(*labels, *predictions) > 1:
        raise DataError("the metric f1 is for two classes; use macro_f1 for more")
    return float(METRICS[metric](labels, predictions))


def majority_score(metric: str, labels: Sequence[int]) -> float:
    """Score the constant prediction of the commonest label, in the same metric.

    Args:
        metric: one of ``METRICS``.
        labels: the labels of the part that is scored.

    Returns:
        What a run must beat to have learnt anything; F1 can be high here (0.812 on MRPC).

    Example:
        >>> majority_score("f1", [1, 1, 0])
        0.8
    """
    commonest = int(np.bincount(labels).argmax())
    return score(metric, labels, [commonest] * len(labels))
