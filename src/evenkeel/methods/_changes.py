"""Changes to the modules of a model that can be taken back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

from torch import nn
from torch.utils.hooks import RemovableHandle

__all__ = ["Changes", "has_dropout"]

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@final
class Changes:
    """What a method did to modules, to be undone when training ends.

    Example:
        >>> layer, changes = nn.Dropout(0.1), Changes()
        >>> changes.no_dropout(layer)
        >>> layer.p
        0.0
        >>> changes.undo()
        >>> layer.p
        0.1
    """

    def __init__(self) -> None:
        self._hooks: list[RemovableHandle] = []
        self._values: list[tuple[nn.Module, str, Any]] = []

    def hook(self, handle: RemovableHandle) -> None:
        """Remember a hook that was registered."""
        self._hooks.append(handle)

    def assign(self, module: nn.Module, name: str, value: Any) -> None:
        """Set an attribute that the module has, and remember what it was."""
        self._values.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    def no_dropout(self, model: nn.Module) -> None:
        """Turn every dropout off: modules, and the rates that modules keep as numbers for functional calls."""
        for module, name in list(_dropouts(model)):
            self.assign(module, name, 0.0)

    def undo(self) -> None:
        """Take everything back; what was changed last first."""
        while self._values:
            module, name, value = self._values.pop()
            setattr(module, name, value)
        while self._hooks:
            self._hooks.pop().remove()


def has_dropout(model: nn.Module) -> bool:
    """Say whether anything in a model drops out, as :meth:`Changes.no_dropout` would turn it off."""
    return any(True for _ in _dropouts(model))


def _dropouts(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Yield each module that drops out and the attribute that holds its rate."""
    for module in model.modules():
        if isinstance(module, _DROPOUTS):
            if module.p > 0:
                yield module, "p"
            continue
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float) and value > 0:
                yield module, name
