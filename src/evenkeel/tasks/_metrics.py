"""Scores of predictions, and what guessing scores."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from evenkeel.errors import DataError, unknown_name

__all__ = ["METRICS", "Metric", "Problem", "majority_score", "metrics_for", "score"]

Problem = Literal["classification", "regression", "causal-lm"]


@final
@dataclass(frozen=True, kw_only=True)
class Metric:
    """A score of predictions.

    Attributes:
        problem: what kind of labels it scores.
        compute: takes labels and predictions, ``N`` of each, and returns a number of which 1 is the best. None where
            they do not say it: ``inverse_perplexity`` is computed from the likelihoods that a model gives.
    """

    problem: Problem
    compute: Callable[[Sequence[Any], Sequence[Any]], float] | None


def _f1(labels: Sequence[int], predictions: Sequence[int]) -> float:
    return float(f1_score(labels, predictions, zero_division=0.0))


def _macro_f1(labels: Sequence[int], predictions: Sequence[int]) -> float:
    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))


def _correlation(statistic: Callable[..., Any], labels: Sequence[float], predictions: Sequence[float]) -> float:
    """Return the correlation; 0 where one side is constant, or so nearly that it cannot be computed."""
    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        value = float(statistic(labels, predictions).statistic)
    return value if math.isfinite(value) else 0.0


def _pearson(labels: Sequence[float], predictions: Sequence[float]) -> float:
    return _correlation(stats.pearsonr, labels, predictions)


def _spearman(labels: Sequence[float], predictions: Sequence[float]) -> float:
    return _correlation(stats.spearmanr, labels, predictions)


def _exact_match(labels: Sequence[str], predictions: Sequence[str]) -> float:
    pairs = zip(labels, predictions, strict=True)
    return sum(label.strip() == prediction.strip() for label, prediction in pairs) / len(labels)


METRICS: dict[str, Metric] = {
    "accuracy": Metric(problem="classification", compute=accuracy_score),
    "f1": Metric(problem="classification", compute=_f1),  # of label 1, as GLUE has it
    "macro_f1": Metric(problem="classification", compute=_macro_f1),
    "matthews": Metric(problem="classification", compute=matthews_corrcoef),
    "pearson": Metric(problem="regression", compute=_pearson),
    "spearman": Metric(problem="regression", compute=_spearman),
    "exact_match": Metric(problem="causal-lm", compute=_exact_match),
    "inverse_perplexity": Metric(problem="causal-lm", compute=None),
}


def metrics_for(problem: Problem, classes: int = 0) -> tuple[str, ...]:
    """Return the metrics that can score a task.

    Args:
        problem: what kind of labels it has.
        classes: how many classes there are, for a classification.

    Returns:
        Their names.

    Example:
        >>> metrics_for("classification", 3)
        ('accuracy', 'macro_f1', 'matthews')
        >>> metrics_for("regression")
        ('pearson', 'spearman')
    """
    return tuple(
        name for name, metric in METRICS.items() if metric.problem == problem and (name != "f1" or classes == 2)
    )


def score(metric: str, labels: Sequence[Any], predictions: Sequence[Any]) -> float:
    """Score predictions.

    Args:
        metric: one of ``METRICS``.
        labels: the right labels, ``N`` of them: class numbers, the values of a regression, or answers.
        predictions: what was predicted, ``N`` likewise.

    Returns:
        The score; 1 is perfect. A correlation with predictions that are all alike is 0.

    Raises:
        DataError: if the metric is unknown, does not fit the number of classes, or is not told by predictions.

    Example:
        >>> score("accuracy", [0, 1, 1], [0, 1, 0])
        0.6666666666666666
        >>> round(score("spearman", [0.5, 1.0, 4.0], [0.1, 0.2, 0.3]), 9)
        1.0
    """
    if metric not in METRICS:
        raise DataError(unknown_name("metric", metric, METRICS))
    if metric == "f1" and max(*labels, *predictions) > 1:
        raise DataError("the metric f1 is for two classes; use macro_f1 for more")
    compute = METRICS[metric].compute
    if compute is None:
        raise DataError(f"{metric} does not follow from predictions, but from the likelihoods that a model gives")
    return float(compute(labels, predictions))


def majority_score(metric: str, labels: Sequence[Any]) -> float:
    """Score the constant prediction, in the same metric: of the commonest label or answer, or of any one value.

    Args:
        metric: one of ``METRICS``.
        labels: the labels of the part that is scored.

    Returns:
        What a run must beat to have learnt anything; F1 can be high here (0.812 on MRPC), a correlation is 0.

    Raises:
        DataError: if the metric is unknown, or does not fit the number of classes.

    Example:
        >>> majority_score("f1", [1, 1, 0])
        0.8
        >>> majority_score("pearson", [0.5, 4.0, 2.5])
        0.0
    """
    if metric in METRICS and METRICS[metric].problem == "regression":
        return 0.0
    values, counts = np.unique(labels, return_counts=True)
    return score(metric, labels, [values[counts.argmax()].item()] * len(labels))
