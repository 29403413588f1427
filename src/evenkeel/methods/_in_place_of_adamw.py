"""Optimizers that take the place of the AdamW that a training makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from evenkeel.errors import MethodError

__all__ = ["groups_of"]


def groups_of(method: str, plain: Optimizer, kept: Sequence[str]) -> list[dict[str, Any]]:
    """Take over the groups of an AdamW, with some of their settings.

    Args:
        method: the name of the method that decides the update.
        plain: what the training would use, without state.
        kept: the names of the settings, such as ``lr``.

    Returns:
        Groups for another optimizer; parameters and their names are always kept.

    Raises:
        MethodError: if it is no ``torch.optim.AdamW``, or one with ``amsgrad``.
    """
    if type(plain) is not torch.optim.AdamW or any(group["amsgrad"] for group in plain.param_groups):
        kind = type(plain).__name__
        raise MethodError(
            f"{method} takes the place of torch.optim.AdamW without amsgrad, and this training has "
            f"{kind + ' with it' if kind == 'AdamW' else kind}; set TrainingArguments(optim='adamw_torch')"
        )
    names = ("params", "param_names", *kept)
    return [{name: group[name] for name in names if name in group} for group in plain.param_groups]
