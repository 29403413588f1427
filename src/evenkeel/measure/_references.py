"""The weights that drift is measured from: those at the beginning of training, and of the phase."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from evenkeel.clipping import WeightCopies, copied_norms, copy_weights, weight_distances, weight_names
from evenkeel.partition import Components

__all__ = ["References"]

_PHASE = "phase"


@final
class References:
    """Copies of weights, made when a component is first trained; those of a phase are the same until others begin.

    What is frozen does not change, so that its copy can wait until it is released.
    """

    def __init__(self, initial: WeightCopies | None = None) -> None:
        """Begin with no copies, or with those of all weights as they were before training, made earlier."""
        self._initial: dict[str, tuple[Tensor, ...]] = dict(initial or {})
        self._of_phase = dict(self._initial)
        self._trained = set(self._initial)  # of what was trained before nothing tells which: take all
        self._phase: int | None = None
        self._parts: Components | None = None
        self._norms: tuple[Tensor, Tensor] | None = None

    def look(self, parts: Components, phase: int) -> None:
        """Copy what is needed, before a step; nearly always nothing.

        Args:
            parts: the components that are trained now.
            phase: the phase that the step belongs to.
        """
        if parts is self._parts and phase == self._phase:
            return
        if phase != self._phase:
            self._of_phase = {}
        names = weight_names(parts)
        self._initial |= copy_weights(parts, known=self._initial)
        # What was never trained before is as it was at the beginning, and what was frozen as when the phase began.
        untrained = [name for name in names if name not in self._of_phase and name not in self._trained]
        self._of_phase |= {name: self._initial[name] for name in untrained}
        self._of_phase |= copy_weights(parts, known=self._of_phase)
        self._trained.update(names)
        self._parts, self._phase, self._norms = parts, phase, None

    @property
    def spread(self) -> bool:
        """Whether this rank holds a part of a phase's weights, and others hold the rest."""
        own = any(views is not self._initial.get(name) for name, views in self._of_phase.items())
        return own and any(piece.spread() for part in self._parts or () for piece in part.pieces)

    def rows(self, parts: Components) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return how far the weights have come, on the device.

        Args:
            parts: the components of the latest :meth:`look`, ``C`` of them.

        Returns:
            Norm of the weights at the beginning and of what lies between; the same for the phase; shape ``[C]`` each.
        """
        same = all(self._of_phase[name] is self._initial[name] for name in weight_names(parts))
        if self._norms is None:
            first = copied_norms(parts, self._initial)
            self._norms = first, first if same else copied_norms(parts, self._of_phase)
        far = weight_distances(parts, self._initial)
        return self._norms[0], far, self._norms[1], far if same else weight_distances(parts, self._of_phase)

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a resumed training cannot find in the weights that it began with: the phase and its own."""
        apart = {name: views for name, views in self._of_phase.items() if views is not self._initial.get(name)}
        state = {f"{index}.{name}": view for name, views in apart.items() for index, view in enumerate(views)}
        return {_PHASE: torch.tensor(-1 if self._phase is None else self._phase, device="cpu"), **state}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where another one was; this one must have been given the weights before training.

        Args:
            state: what :meth:`state_dict` returned.
        """
        phase = int(state[_PHASE])
        self._phase = None if phase < 0 else phase
        views: dict[str, dict[int, Tensor]] = {}
        for key, view in state.items():
            index, _, name = key.partition(".")
            if name in self._initial:
                like = self._initial[name][int(index)]
                views.setdefault(name, {})[int(index)] = view.to(like.device)
        self._of_phase = self._initial | {
            name: tuple(found[index] for index in sorted(found)) for name, found in views.items()
        }
