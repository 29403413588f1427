"""LNSR: hidden states that noise further down does not move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from evenkeel.errors import MethodError
from evenkeel.methods._changes import Changes
from evenkeel.methods._contract import Method, Touched
from evenkeel.methods._divergence import precise
from evenkeel.methods._draws import Moment
from evenkeel.methods._hidden_states import changed_output, output_states
from evenkeel.methods._options import check_number
from evenkeel.methods._replay import Replay
from evenkeel.methods._session import Session
from evenkeel.methods._setting import Batch, Setting
from evenkeel.partition import blocks

__all__ = ["LNSR"]


@final
@dataclass(frozen=True, kw_only=True)
class LNSR(Method):
    r"""Run every batch again with noise behind one block, and pull the hidden states of the blocks above together.

    With :math:`h_r` the hidden states behind block :math:`r` of :math:`L`, and :math:`\tilde h_r` those of a second
    pass in which noise :math:`z` was added to :math:`h_b`, the loss is

    .. math::
        \ell + \lambda \sum_{r = b + 1}^{L - 1} \operatorname{mean} (\tilde h_r - h_r)^2, \qquad
        z = \rho\, \|h_b\|_2\, \frac{g}{\|g\|_2}, \quad g \sim N(0, I)

    with the norms taken for each position on its own. The mean is taken over the hidden units, over the positions of an
    example that its attention mask counts, and over examples; of a causal language model over the tokens that have a
    label. The paper writes the square of the norm: its :math:`\lambda` is this one divided by the number of units and
    positions. Gradients flow through both passes, but not into the norm of the noise.

    The second pass repeats the dropout of the first one, so that the noise alone sets them apart, as in the formula;
    torch's global generator stands afterwards as if there had been one pass.

    Source: Hua et al. 2021, arXiv 2107.04835, algorithm 1; the noise's norm is that of its figure 1.

    Attributes:
        weight: :math:`\lambda`, from 0 on. With 0 there is no second pass.
        block: :math:`b`, from 0, the block next to the embeddings, to the last block but one; the paper leaves it to be
            chosen.
        noise: :math:`\rho`, the norm of the noise as a share of the hidden state's, from 0 on; the paper's is 0.05.

    Raises:
        MethodError: if an option is negative or no number.
    """

    name: ClassVar[str] = "lnsr"
    summary: ClassVar[str] = "mean squared change of the hidden states above a block by noise behind it"
    source: ClassVar[str] = "Hua et al. 2021, arXiv 2107.04835"
    touches: ClassVar[frozenset[Touched]] = frozenset({"forward"})
    conflicts: ClassVar[Mapping[str, str]] = {
        "head-only": "it freezes the blocks, so that nothing could pull their hidden states together",
        "mixout": "mixout draws other weights for each pass, which would move hidden states more than the noise",
    }

    weight: float = 1.0
    block: int = 0
    noise: float = 0.05

    def __post_init__(self) -> None:
        check_number(self.name, "weight", self.weight, least=0, advice="1 is usual")
        check_number(self.name, "block", self.block, least=0, whole=True, advice="0 is the lowest block")
        check_number(self.name, "noise", self.noise, least=0, advice="0.05 is usual")

    def check(self, setting: Setting) -> None:
        """Refuse models that have no block above ``block``, and those with an encoder and a decoder."""
        found = blocks(setting.model)
        if len({block.stack for block in found}) > 1:
            raise MethodError(
                "lnsr follows hidden states up one stack of blocks, and this model has an encoder and a decoder, or "
                "several towers; use a method that does not go by blocks, such as r-drop"
            )
        if not any(block.shared for block in found):  # else the first batch tells how many layers they are
            _check_height(self.block, len(found))

    def begin(self, setting: Setting) -> Session:
        """Return the session that makes the noisy pass; with no weight one that does nothing."""
        return _LNSRSession(self, setting) if self.weight > 0 else Session()


def _check_height(block: int, height: int) -> None:
    if height < 2:
        raise MethodError(f"lnsr needs a model of at least 2 blocks, but found {height}; use full for this model")
    if block > height - 2:
        raise MethodError(
            f"lnsr: noise behind block {block} needs a block above it, and the model has {height}; choose block from 0 "
            f"to {height - 2}"
        )


@final
class _LNSRSession(Session):
    """Keeps the hidden states behind all blocks, and adds noise to those of one in a pass of its own."""

    def __init__(self, method: LNSR, setting: Setting) -> None:
        self._method = method
        self._replay = Replay(setting.model)
        self._states: list[Tensor] | None = None  # in the order of calls; None where nobody wants them
        self._noisy: Moment | None = None  # in the pass with noise
        self._changes = Changes()
        modules = {id(block.module): block.module for block in blocks(setting.model)}  # one may be several layers
        for module in modules.values():
            self._changes.hook(module.register_forward_hook(self._keep))

    def before_forward(self, moment: Moment) -> None:
        self._states = []
        self._replay.remember()

    def loss_term(self, batch: Batch) -> Tensor:
        clean: list[Tensor] = self._states or []
        noisy: list[Tensor] = []
        try:
            self._states, self._noisy = noisy, batch.moment
            with self._replay.again():
                batch.again()
        finally:
            self._states, self._noisy = None, None
        _check_height(self._method.block, len(noisy))
        above = slice(self._method.block + 1, len(noisy))  # behind them may stand passes of other methods
        moved = [
            _per_item(batch, (precise(one) - precise(other)).square().mean(-1))
            for one, other in zip(noisy[above], clean[above], strict=True)
        ]
        return self._method.weight * batch.mean(torch.stack(moved).sum(0))

    def close(self) -> None:
        self._changes.undo()
        self._states = None

    def _keep(self, _: nn.Module, __: object, output: Any) -> Any:
        if self._states is None:
            return None
        if self._noisy is not None and len(self._states) == self._method.block:
            output = changed_output(output, partial(self._with_noise, self._noisy))
        self._states.append(output_states(output))
        return output

    def _with_noise(self, moment: Moment, states: Tensor) -> Tensor:
        generator = moment.generator(self._method.name, states.device)
        with torch.no_grad():
            drawn = torch.randn(states.shape, generator=generator, device=states.device)
            norm = torch.linalg.vector_norm(precise(states), dim=-1, keepdim=True)
            noise = drawn * (self._method.noise * norm / torch.linalg.vector_norm(drawn, dim=-1, keepdim=True))
        return states.add(noise.to(states.dtype))


def _per_item(batch: Batch, values: Tensor) -> Tensor:
    """Average what every position has, shape ``[rows, positions]``, over the positions of each item that count."""
    if batch.problem == "causal-lm":
        return batch.of_labels(values)
    mask = batch.inputs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.shape != values.shape:
        return values.flatten(1).mean(1)
    counts = mask != 0
    return values.where(counts, 0.0).sum(1) / counts.sum(1).clamp(min=1)
