"""What a threshold has learnt, in the state of the optimizer that it belongs to."""

from __future__ import annotations

import copy
from typing import Any

from torch.optim import Optimizer

from evenkeel.clipping import MaxNorm
from evenkeel.clipping.thresholds import Threshold
from evenkeel.errors import OptimizerError, ThresholdError

__all__ = ["ENTRY", "keep_threshold", "refuse_copy"]

ENTRY = "threshold"  # of a state_dict


def keep_threshold(optimizer: Optimizer, max_norm: MaxNorm) -> None:
    """Let an optimizer's ``state_dict`` hold what a threshold knows, and ``load_state_dict`` give it back.

    A threshold that remembers nothing adds no entry, so that other optimizers of the class see what they know. A state
    without the entry is one of theirs: the threshold begins anew.

    Args:
        optimizer: whose state it becomes part of.
        max_norm: the threshold; numbers remember nothing.
    """
    if not isinstance(max_norm, Threshold):
        return

    fresh = copy.deepcopy(max_norm.state_dict())

    def save(_: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        learnt = max_norm.state_dict()
        return {**state, ENTRY: {"name": type(max_norm).__name__, "state": learnt}} if learnt else state

    def load(_: Optimizer, state: dict[str, Any]) -> None:
        saved = state.get(ENTRY)
        if saved is None:
            if fresh:
                max_norm.load_state_dict(copy.deepcopy(fresh))
            return
        if "state" not in saved:
            raise ThresholdError(
                f"the state is that of an optimizer that steps in backward, where every part of the model has a "
                f"{saved.get('name')} of its own; load it into one of the same kind, or leave its entry '{ENTRY}' out"
            )
        if saved["name"] != type(max_norm).__name__:
            raise ThresholdError(
                f"the optimizer's state was saved with the threshold {saved['name']} and this one has "
                f"{type(max_norm).__name__}; load it into an optimizer with the same threshold, or leave its entry "
                f"'{ENTRY}' out"
            )
        max_norm.load_state_dict(saved["state"])

    optimizer.register_state_dict_post_hook(save)
    optimizer.register_load_state_dict_pre_hook(load)


def refuse_copy(*_: Any) -> Any:
    """Refuse, by an ``OptimizerError``, to be copied or pickled: components are those of one model's parameters."""
    raise OptimizerError(
        "an optimizer that clips by component cannot be copied or pickled, because its components are bound to the "
        "parameters of its model; make one for the copied model, and load_state_dict(optimizer.state_dict())"
    )
