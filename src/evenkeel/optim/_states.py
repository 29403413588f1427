"""What a threshold has learnt, in the state of the optimizer that it belongs to."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from evenkeel.clipping import MaxNorm
from evenkeel.clipping.thresholds import Threshold
from evenkeel.errors import ThresholdError

__all__ = ["keep_threshold"]

_ENTRY = "threshold"


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

    def save(_: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        learnt = max_norm.state_dict()
        return {**state, _ENTRY: {"name": type(max_norm).__name__, "state": learnt}} if learnt else state

    def load(_: Optimizer, state: dict[str, Any]) -> None:
        saved = state.get(_ENTRY)
        if saved is None:
            return
        if saved["name"] != type(max_norm).__name__:
            raise ThresholdError(
                f"the optimizer's state was saved with the threshold {saved['name']} and this one has "
                f"{type(max_norm).__name__}; load it into an optimizer with the same threshold, or leave its entry "
                f"'{_ENTRY}' out"
            )
        max_norm.load_state_dict(saved["state"])

    optimizer.register_state_dict_post_hook(save)
    optimizer.register_load_state_dict_pre_hook(load)
