"""Several methods at once, where no two decide the same thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from evenkeel.errors import MethodError
from evenkeel.methods._contract import Clipping, Method, Owned, Phase
from evenkeel.methods.full import FullFineTuning
from evenkeel.partition import Components

__all__ = ["Mix"]

_WORDS: dict[Owned, str] = {"clipping": "how gradients are clipped", "phases": "what is trained when"}


def _everything(_: object) -> bool:
    return True


@final
@dataclass(frozen=True)
class Mix:
    """Methods that work together; what none of them decides is done as in ``full``.

    Attributes:
        methods: at least one, no two of which own the same thing.

    Raises:
        MethodError: if there is no method, or two own the same thing.

    Example:
        >>> from evenkeel.methods import ComponentClipping, GradualUnfreezing
        >>> Mix((GradualUnfreezing(), ComponentClipping())).name
        'gradual-unfreezing+component-clip'
    """

    methods: Sequence[Method]

    def __post_init__(self) -> None:
        if not self.methods:
            raise MethodError("a mix needs at least one method; 'full' is ordinary fine-tuning")
        for owned, words in _WORDS.items():
            names = [method.name for method in self.methods if owned in method.owns]
            if len(names) > 1:
                raise MethodError(
                    f"{' and '.join(names)} cannot be mixed: each decides {words}; keep one of them, or compare them "
                    f"as separate methods ({','.join(names)})"
                )

    @property
    def name(self) -> str:
        """The names of the methods, joined by ``+``."""
        return "+".join(method.name for method in self.methods)

    def check(self, parts: Components) -> None:
        """Refuse a model that lacks what a method needs, before training.

        Args:
            parts: the components of the whole model, per tensor.
        """
        for method in self.methods:
            method.check(parts)

    def phases(self, parts: Components) -> tuple[Phase, ...]:
        """Return the phases of training; a single one that trains everything where no method owns them."""
        owner = self._owner("phases")
        return owner.phases(parts) if owner else (Phase(name="everything", trainable=_everything),)

    def clipping(self, parts: Components) -> Clipping:
        """Return what the owner of clipping says; globally, as in ``full``, where no method owns it."""
        return (self._owner("clipping") or FullFineTuning()).clipping(parts)

    def _owner(self, owned: Owned) -> Method | None:
        return next((method for method in self.methods if owned in method.owns), None)
