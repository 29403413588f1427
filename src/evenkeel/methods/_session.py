"""What a method does while a training goes on: the hooks, and the state behind them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from evenkeel.errors import MethodError
from evenkeel.methods._draws import Moment
from evenkeel.methods._setting import Batch, Step

__all__ = ["Session", "Sessions"]


class Session:
    """One training of one method; by itself it does nothing. A method is a configuration, and what changes lives here.

    A trainer calls, in this order: :meth:`start` or :meth:`load_state_dict`; for each micro-batch
    :meth:`before_forward` and :meth:`loss_term`; for each step, with complete gradients, :meth:`before_step` and
    :meth:`after_step`; in the end :meth:`finish`, unless an exception ended the training; and in any case
    :meth:`close`.
    """

    def start(self) -> None:
        """Begin a training that is not resumed; weights are where they will be trained."""

    def before_forward(self, moment: Moment) -> None:
        """Prepare for the forward passes of a micro-batch."""

    def loss_term(self, batch: Batch) -> Tensor | None:
        """Return what is added to the loss of a micro-batch, 0-dimensional; None for nothing."""
        return None

    def ascend(self, step: Step) -> None:
        """Move the weights to where gradients are taken again; asked of owners of ``"second pass"``.

        Gradients are complete and not clipped. Afterwards they are dropped, and all micro-batches run again.
        """

    def descend(self) -> None:
        """Move the weights back to where :meth:`ascend` took them from; may be asked twice, as after an exception."""

    def before_step(self, step: Step) -> None:
        """Change gradients that were clipped, or weights, right before the optimizer's step."""

    def after_step(self, step: Step) -> None:
        """Look at weights, or change them, right after the optimizer's step."""

    def evaluating(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the model is as it is to be evaluated."""
        return contextlib.nullcontext()

    def finish(self) -> None:
        """Leave the weights that the training is to result in."""

    def close(self) -> None:
        """Take back everything that was done to the model but for its weights; may be asked twice."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must keep: tensors, numbers, text, lists and dictionaries of these."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned, in place of :meth:`start`."""


class Sessions(Session):
    """The sessions of several methods, as one."""

    def __init__(self, sessions: Mapping[str, Session]) -> None:
        """Join ``sessions``, by the names of their methods."""
        self._sessions = dict(sessions)

    def start(self) -> None:
        for session in self._sessions.values():
            session.start()

    def before_forward(self, moment: Moment) -> None:
        for session in self._sessions.values():
            session.before_forward(moment)

    def loss_term(self, batch: Batch) -> Tensor | None:
        found = (session.loss_term(batch) for session in self._sessions.values())
        terms = [term for term in found if term is not None]
        return sum(terms[1:], start=terms[0]) if terms else None

    def ascend(self, step: Step) -> None:
        for session in self._sessions.values():
            session.ascend(step)

    def descend(self) -> None:
        for session in self._sessions.values():
            session.descend()

    def before_step(self, step: Step) -> None:
        for session in self._sessions.values():
            session.before_step(step)

    def after_step(self, step: Step) -> None:
        for session in self._sessions.values():
            session.after_step(step)

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for session in self._sessions.values():
                stack.enter_context(session.evaluating())
            yield

    def evaluating(self) -> contextlib.AbstractContextManager[None]:
        return self._evaluating()

    def finish(self) -> None:
        for session in self._sessions.values():
            session.finish()

    def close(self) -> None:
        with contextlib.ExitStack() as stack:  # the last one first, and each whatever the others do
            for session in self._sessions.values():
                stack.callback(session.close)

    def state_dict(self) -> dict[str, Any]:
        return {name: session.state_dict() for name, session in self._sessions.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if set(state) != set(self._sessions):
            raise MethodError(
                f"the checkpoint was written with the methods {_listed(state)}, and this training has "
                f"{_listed(self._sessions)}; resume with the same methods, or begin a new training"
            )
        for name, session in self._sessions.items():
            session.load_state_dict(state[name])


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(names) or "(none)"
