"""The contract of thresholds: from the norms of a step to the norms that are allowed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from evenkeel.errors import ThresholdError
from evenkeel.partition import Components

__all__ = ["EPSILON", "Limits", "Seen", "Threshold"]

EPSILON = 1e-6  # as in torch.nn.utils.clip_grad_norm_ and in the paper's code


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a threshold may look at in one step. ``C`` components; everything stays on the device.

    Attributes:
        norms: the gradients' norms before clipping, over all ranks, shape ``[C]``; 0 where a component has no gradient.
            A norm that is 0 or not finite tells nothing and must not enter a running threshold: see ``usable``.
        weights: the weights' norms, shape ``[C]``; None unless the threshold ``needs_weights``.
        norm_type: order of all norms.
        whole: the norm of all components together, 0-dimensional, those of other pipeline stages included; None stands
            for the norm of ``norms``.
        sizes: the components' numbers of entries, over all pipeline stages; None stands for ``Component.size``.
        elsewhere: number of components, and of their entries, that other pipeline stages hold and this one does not.
    """

    norms: Tensor
    weights: Tensor | None = None
    norm_type: float = 2.0
    whole: Tensor | None = None
    sizes: tuple[int, ...] | None = None
    elsewhere: tuple[int, int] = (0, 0)

    @property
    def total_norm(self) -> Tensor:
        """The norm of all components together, 0-dimensional."""
        if self.whole is not None:
            return self.whole
        largest = self.norms.amax()  # divided by it, no power overflows
        scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0).double()
        total: Tensor = torch.linalg.vector_norm(self.norms.double() / scale, self.norm_type) * scale
        return total.to(self.norms.dtype)

    @property
    def usable(self) -> Tensor:
        """Which norms tell something: finite and not 0. Booleans of shape ``[C]``."""
        return self.norms.isfinite() & (self.norms > 0)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is allowed: component ``c`` is multiplied by ``min(1, thresholds[c] / (norms[c] + 1e-6))``.

    Attributes:
        thresholds: the norms allowed, shape ``[C]``; infinity leaves a component alone.
        norms: the norms that count, shape ``[C]``: the component's own; those of its group where several components
            are clipped together.
    """

    thresholds: Tensor
    norms: Tensor

    @property
    def coefficients(self) -> Tensor:
        """What the gradients are multiplied by, shape ``[C]``; NaN where the norm that counts is NaN."""
        # inf / inf is NaN, so that an infinite threshold needs the comparison, not the quotient alone; and no quotient
        # of infinity must be there even where it is not chosen, because its derivative would be NaN.
        free = self.thresholds.isinf() & ~self.norms.isnan()
        quotients = self.thresholds.masked_fill(free, 1.0) / (self.norms + EPSILON)
        return torch.where(free, 1.0, quotients).clamp(max=1.0)


class Threshold(ABC):
    """A threshold that looks at what training does.

    All state lives on the device of the norms, and no method but ``state_dict`` waits for it. State belongs to
    components by name: where components come and go (layers that are unfrozen), those that stay keep theirs.

    Attributes:
        needs_weights: whether :meth:`limits` looks at the weights' norms, which cost a pass over all weights.
    """

    needs_weights: ClassVar[bool] = False

    @property
    def separate(self) -> bool:
        """Whether a component's limits come from its own norms alone, so that it can be clipped before others.

        False unless a class says otherwise.
        """
        return False

    def bind(self, parts: Components) -> None:  # noqa: B027  a threshold that looks at norms alone needs no names
        """Learn which components the norms of the next steps belong to. Called before every step, so it is quick.

        Args:
            parts: the components, ``C`` of them, in the order of the norms. The same object as in the call before
                means that nothing has changed.

        Raises:
            ThresholdError: if this threshold cannot serve them.
        """

    @abstractmethod
    def limits(self, seen: Seen) -> Limits:
        """Return what is allowed in this step, and take its norms into account for the steps to come.

        Args:
            seen: the norms of this step, ``C`` components.

        Returns:
            Thresholds and the norms that they apply to, of the dtype and on the device of ``seen.norms``.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs; configuration is not part of it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of another object of the same class.

        Args:
            state: what :meth:`state_dict` returned.

        Raises:
            ThresholdError: if it is no state of this class.
        """
        if state != {}:
            raise ThresholdError(
                f"{type(self).__name__} has no state, but was given one to load ({type(state).__name__}); load it into "
                "the class that it was saved from"
            )
