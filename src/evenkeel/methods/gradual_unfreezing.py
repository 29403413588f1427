"""Gradual unfreezing: fine-tuning from the top of the model down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from evenkeel.errors import MethodError
from evenkeel.methods._contract import Method, Owned, Phase
from evenkeel.methods._options import check_flag, check_number
from evenkeel.methods._place import is_above_blocks
from evenkeel.methods._setting import Setting
from evenkeel.partition import Component, Components

__all__ = ["GradualUnfreezing"]


@final
@dataclass(frozen=True, kw_only=True)
class GradualUnfreezing(Method):
    r"""Train the head and the top block, then the top two, until everything is trained.

    With :math:`L` blocks, iteration :math:`k = 0, \dots, L - 1` trains the head and blocks :math:`L - k` to :math:`L`
    (counted from 1) for :math:`E` epochs; the embeddings are released with the lowest block. Each iteration starts
    with a fresh optimizer and learning-rate schedule, so that a training takes :math:`L E` epochs.

    The form of ULMFiT is ``epochs=1``, ``final_epochs`` as many as it takes, and ``restart=False``: one more layer an
    epoch, then all of them, under one learning-rate schedule.

    Source: Howard & Ruder 2018, arXiv 1801.06146, section 3.3, in the form that Yang & Ma 2022 (arXiv 2210.10325,
        section 3) test.

    Attributes:
        epochs: :math:`E`, epochs of each iteration, positive; None takes the ``num_train_epochs`` of the training.
        final_epochs: epochs of the last iteration, in which everything is trained, positive; None for as many as the
            others.
        restart: whether each iteration begins with an empty optimizer and the whole learning-rate schedule.

    Raises:
        MethodError: if a value is not as described.
    """

    name: ClassVar[str] = "gradual-unfreezing"
    summary: ClassVar[str] = "top block first, one more block in each of L iterations of E epochs"
    source: ClassVar[str] = "Howard & Ruder 2018, arXiv 1801.06146; Yang & Ma 2022, arXiv 2210.10325"
    owns: ClassVar[frozenset[Owned]] = frozenset({"phases"})

    epochs: float | None = None
    final_epochs: float | None = None
    restart: bool = True

    def __post_init__(self) -> None:
        advice = "leave it out to give every iteration as many epochs as the training has"
        check_number(self.name, "epochs", self.epochs, above=0, optional=True, advice=advice)
        advice = "leave it out to give the last iteration as many epochs as the others"
        check_number(self.name, "final_epochs", self.final_epochs, above=0, optional=True, advice=advice)
        advice = "true makes each iteration a fine-tuning of its own"
        check_flag(self.name, "restart", self.restart, advice=advice)

    def check(self, setting: Setting) -> None:
        """Refuse models without blocks to release one after the other."""
        self.phases(setting.parts)

    def phases(self, parts: Components) -> tuple[Phase, ...]:
        """Return one phase per block, from the top down."""
        depth = parts.depth
        if depth < 2:
            raise MethodError(
                f"gradual-unfreezing needs a model of at least 2 blocks, but found {depth}; use full for this model"
            )
        last = self.epochs if self.final_epochs is None else self.final_epochs
        return tuple(
            Phase(
                name=f"layers {lowest} to {depth - 1}",
                trainable=_Above(lowest=lowest),
                epochs=self.epochs if lowest else last,
                restart=self.restart,
            )
            for lowest in reversed(range(depth))
        )


@dataclass(frozen=True, kw_only=True)
class _Above:
    """Whether a component is in block ``lowest`` or above it.

    Outside the blocks, what is not above them counts as embeddings, which lie below block 0, so that nothing below a
    frozen block is trained.
    """

    lowest: int

    def __call__(self, component: Component) -> bool:
        if component.layer is not None:
            return component.layer >= self.lowest
        return self.lowest == 0 or is_above_blocks(component)
