"""What the head of a transformers model is for."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from evenkeel.methods import Problem

__all__ = ["problem_of"]

_PROBLEMS: dict[str, Problem] = {
    "regression": "regression",
    "single_label_classification": "classification",
    "multi_label_classification": "multi-label",
}


def problem_of(model: nn.Module) -> Problem:
    """Say what a model's head is for.

    Args:
        model: the model, without wrappers.

    Returns:
        ``"unknown"`` for what neither classifies sequences nor goes on writing them.
    """
    name, config = type(model).__name__, getattr(model, "config", None)
    if name in _CAUSAL:
        return "causal-lm"
    if not name.endswith("ForSequenceClassification"):
        return "unknown"
    given: Any = getattr(config, "problem_type", None)
    if given in _PROBLEMS:
        return _PROBLEMS[given]
    return "regression" if getattr(config, "num_labels", 2) == 1 else "classification"  # as transformers itself decides


_CAUSAL = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
