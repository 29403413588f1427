"""Keep the fine-tuning of pretrained language models on an even keel.

Names are handed out lazily (PEP 562), so that ``import evenkeel`` costs nothing and ``evenkeel --help`` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evenkeel import optim
    from evenkeel._version import __version__
    from evenkeel.clipping import ClipResult, ClipStatistics, clip_grad_norm_, clip_grads, thresholds
    from evenkeel.partition import Component, Components, components
    from evenkeel.report import load_study

__all__ = [
    "ClipResult",
    "ClipStatistics",
    "Component",
    "Components",
    "__version__",
    "clip_grad_norm_",
    "clip_grads",
    "components",
    "errors",
    "load_study",
    "optim",
    "thresholds",
]

_HOME = {
    "ClipResult": "evenkeel.clipping",
    "ClipStatistics": "evenkeel.clipping",
    "Component": "evenkeel.partition",
    "Components": "evenkeel.partition",
    "__version__": "evenkeel._version",
    "clip_grad_norm_": "evenkeel.clipping",
    "clip_grads": "evenkeel.clipping",
    "components": "evenkeel.partition",
    "errors": "evenkeel.errors",
    "load_study": "evenkeel.report",
    "optim": "evenkeel.optim",
    "thresholds": "evenkeel.clipping.thresholds",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'evenkeel' has no attribute '{name}'")
    module = importlib.import_module(_HOME[name])
    value = module if _HOME[name].endswith(f".{name}") else getattr(module, name)
    globals()[name] = value  # the next access finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
