"""Several methods at once, where no two decide the same thing."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch.optim import Optimizer

from evenkeel.errors import MethodError
from evenkeel.methods._contract import Clipping, Method, Owned, Phase, Recipe, Touched
from evenkeel.methods._session import Sessions
from evenkeel.methods._setting import Setting
from evenkeel.methods.full import FullFineTuning
from evenkeel.partition import Components

__all__ = ["Mix"]

_WORDS: dict[Owned, str] = {
    "clipping": "how gradients are clipped",
    "phases": "what is trained when",
    "rates": "the learning rate of each component",
    "update": "how the optimizer updates weights",
    "second pass": "where gradients are taken a second time",
}


def _everything(_: object) -> bool:
    return True


@final
@dataclass(frozen=True)
class Mix:
    """Methods that work together; what none of them decides is done as in ``full``.

    Attributes:
        methods: at least one, no two of which own the same thing.

    Raises:
        MethodError: if there is no method, something else, one method twice, or two that cannot be mixed.

    Example:
        >>> from evenkeel.methods import ComponentClipping, GradualUnfreezing
        >>> Mix((GradualUnfreezing(), ComponentClipping())).name
        'gradual-unfreezing+component-clip'
    """

    methods: Sequence[Method]

    def __post_init__(self) -> None:
        if not self.methods:
            raise MethodError("a mix needs at least one method; 'full' is ordinary fine-tuning")
        for method in self.methods:
            if not isinstance(method, Method):
                raise MethodError(
                    f"{method!r} is no method; give one of its class, such as {FullFineTuning.__name__}(), or its name"
                )
        for one, other in itertools.combinations(self.methods, 2):
            reason = _conflict(one, other)
            if reason:
                raise MethodError(
                    f"{one.name} and {other.name} cannot be mixed: {reason}; keep one of them, or compare them as "
                    f"separate methods ({one.name},{other.name})"
                )

    @property
    def name(self) -> str:
        """The names of the methods, joined by ``+``."""
        return "+".join(method.name for method in self.methods)

    @property
    def touches(self) -> dict[Touched, str]:
        """What the methods change while a training goes on, and the name of the first that does."""
        found: dict[Touched, str] = {}
        for method in self.methods:
            for touched in sorted(method.touches):
                found.setdefault(touched, method.name)
        return found

    @property
    def acting(self) -> tuple[str, ...]:
        """The names of the methods that act while a training goes on, and not only lay down how it goes."""
        return tuple(method.name for method in self.methods if type(method).begin is not Method.begin)

    def owner(self, owned: Owned) -> Method | None:
        """Return the method that decides ``owned``: one that owns it, else the first that decides it otherwise."""
        found = [method for method in self.methods if owned in method.owns]
        found += [method for method in self.methods if owned in method.otherwise]
        return found[0] if found else None

    def check(self, setting: Setting) -> None:
        """Refuse a model that lacks what a method needs, before training.

        Args:
            setting: what is to be fine-tuned.
        """
        for method in self.methods:
            method.check(setting)
        self.phases(setting.parts)

    def recipe(self) -> Recipe:
        """Return what the methods lay down of the training's settings, no two of them the same one."""
        laid_down: dict[str, Any] = {}
        for method in self.methods:
            laid_down |= _laid_down(method)
        return Recipe(**laid_down)

    def begin(self, setting: Setting) -> Sessions:
        """Begin a training, see :meth:`Method.begin`; where a method cannot, those before it are closed.

        Args:
            setting: what is fine-tuned.

        Returns:
            The sessions of those methods that act while a training goes on.
        """
        with contextlib.ExitStack() as undo:
            sessions = {}
            for method in sorted(self.methods, key=lambda method: method.name):  # a+b is b+a
                if method.name in self.acting:
                    sessions[method.name] = method.begin(setting)
                    undo.callback(sessions[method.name].close)
            undo.pop_all()
        return Sessions(sessions)

    def phases(self, parts: Components) -> tuple[Phase, ...]:
        """Return the phases of training; a single one that trains everything where no method owns them."""
        owner = self.owner("phases")
        return owner.phases(parts) if owner else (Phase(name="everything", trainable=_everything),)

    def clipping(self, parts: Components) -> Clipping:
        """Return what the owner of clipping says; globally, as in ``full``, where no method owns it."""
        return (self.owner("clipping") or FullFineTuning()).clipping(parts)

    def rates(self, parts: Components) -> Mapping[str, float]:
        """Return what the owner of learning rates says; nothing where no method owns them."""
        owner = self.owner("rates")
        return owner.rates(parts) if owner else {}

    def optimizer(self, plain: Optimizer) -> Optimizer:
        """Return what the owner of the update makes of ``plain``; itself where no method owns it."""
        owner = self.owner("update")
        return owner.optimizer(plain) if owner else plain


def _conflict(one: Method, other: Method) -> str:
    """Say why two methods cannot be mixed; nothing where they can."""
    if one.name == other.name:
        return "they are the same method"
    for owned, words in _WORDS.items():
        if owned in one.owns & other.owns:
            return f"each decides {words}"
    for updating, laying in ((one, other), (other, one)):
        if "update" in updating.owns and laying.recipe().correct_bias is False:
            return f"each decides {_WORDS['update']}"
    both = _laid_down(one).keys() & _laid_down(other).keys()
    if both:
        return f"each lays down the training's {' and '.join(sorted(both))}"
    return one.conflicts.get(other.name) or other.conflicts.get(one.name) or ""


def _laid_down(method: Method) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(method.recipe()).items() if value is not None}
