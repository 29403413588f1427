"""The components of a model whose parameters are frozen and released while it trains."""

from __future__ import annotations

from torch import nn

from evenkeel.partition._components import Components
from evenkeel.partition._discover import components
from evenkeel.partition._regroup import By
from evenkeel.partition._table import Roles

__all__ = ["CurrentComponents"]


class CurrentComponents:
    """Looks at a model again whenever the set of its trainable parameters has changed.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> current = CurrentComponents(model)
        >>> len(current())
        2
        >>> _ = model.bias.requires_grad_(False)
        >>> len(current())
        1
    """

    def __init__(self, model: nn.Module, by: By = "tensor", *, roles: Roles | None = None) -> None:
        """Watch ``model``, grouped as :func:`evenkeel.components` does with ``by``, by its rules and ``roles``."""
        self._model = model
        self._roles = roles
        self._by: By = by
        self._seen: tuple[int, ...] | None = None
        self._parts: Components

    def __call__(self) -> Components:
        """Return the components as they are now."""
        now = tuple(id(parameter) for parameter in self._model.parameters() if parameter.requires_grad)
        if now != self._seen:
            self._parts = components(self._model, self._by, roles=self._roles)
            self._seen = now
        return self._parts
