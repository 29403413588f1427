"""R3F: predictions that noise on the embeddings does not move."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, final, get_args

import torch
from torch import Tensor, nn

from evenkeel.methods._contract import Method, Touched
from evenkeel.methods._divergence import check_divergence, divergence
from evenkeel.methods._embedding_noise import changed_embeddings, token_embeddings
from evenkeel.methods._options import check_choice, check_number
from evenkeel.methods._session import Session
from evenkeel.methods._setting import Batch, Setting

__all__ = ["R3F"]

Noise = Literal["uniform", "normal"]


@final
@dataclass(frozen=True, kw_only=True)
class R3F(Method):
    r"""Pull the predictions for embeddings with noise and without it together.

    With the embeddings :math:`x` of the input tokens and the model's prediction :math:`p(x)`, the loss is

    .. math::
        \ell + \lambda \frac1N \sum_i KL(p_i(x) \| p_i(x + z)) + KL(p_i(x + z) \| p_i(x)), \qquad
        z \sim U(-\epsilon, \epsilon) \text{ or } N(0, \epsilon^2).

    Gradients flow through both predictions; as in the authors' code, those of the noisy pass end at its embeddings,
    which the paper's formula does not ask for. Noise is added to what the model's word embeddings return, before
    positions and a norm; where an encoder and a decoder share them, on both sides. Both passes draw dropout from
    torch's global generator, each its own, as in the authors' code: with dropout, that is most of what sets them apart.
    Items are examples, or labelled tokens of a causal language model; labels of a multi-label model are compared one by
    one, and their divergences averaged. In half precision noise as small as this drowns in rounding, and little but
    dropout is left of it.

    Source: Aghajanyan et al. 2020, arXiv 2008.03156, the objective of R3F.

    Attributes:
        weight: :math:`\lambda`, from 0 on; 1 in the authors' code. With 0 there is no second pass.
        eps: :math:`\epsilon`, the width of the noise, from 0 on; the paper's is 1e-5.
        noise: ``"uniform"``, as by default in the authors' code, or ``"normal"``.

    Raises:
        MethodError: if ``weight`` or ``eps`` is negative or no number, or the noise is unknown.
    """

    name: ClassVar[str] = "r3f"
    summary: ClassVar[str] = "symmetric KL between the predictions with and without noise on the embeddings"
    source: ClassVar[str] = "Aghajanyan et al. 2020, arXiv 2008.03156"
    touches: ClassVar[frozenset[Touched]] = frozenset({"forward"})

    weight: float = 1.0
    eps: float = 1e-5
    noise: Noise = "uniform"

    def __post_init__(self) -> None:
        check_number(self.name, "weight", self.weight, least=0, advice="1 is usual")
        check_number(self.name, "eps", self.eps, least=0, advice="1e-5 is usual")
        check_choice(self.name, "noise", self.noise, get_args(Noise))

    def check(self, setting: Setting) -> None:
        """Refuse models without classes, and those that do not tell their word embeddings."""
        check_divergence(self.name, setting.problem, regression=False)
        token_embeddings(setting.model, self.name)

    def begin(self, setting: Setting) -> Session:
        """Return the session that makes the noisy pass; with no weight one that does nothing."""
        if self.weight == 0:
            return Session()
        return _R3FSession(self, token_embeddings(setting.model, self.name))


@final
class _R3FSession(Session):
    """Makes the noisy pass."""

    def __init__(self, method: R3F, embeddings: Iterable[nn.Module]) -> None:
        self._method, self._embeddings = method, embeddings

    def loss_term(self, batch: Batch) -> Tensor:
        generator: torch.Generator | None = None

        def noisy(_: int, embedded: Tensor) -> Tensor:
            nonlocal generator
            generator = generator or batch.moment.generator(self._method.name, embedded.device)
            return embedded.detach() + self._draw(embedded, generator)

        with changed_embeddings(self._embeddings, noisy):
            _, outputs = batch.again()
        apart = divergence(batch.problem)(batch.logits(), batch.logits(outputs))
        return self._method.weight * batch.mean(apart)

    def _draw(self, embedded: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.empty_like(embedded, memory_format=torch.contiguous_format)
        if self._method.noise == "normal":
            return noise.normal_(generator=generator) * self._method.eps
        return noise.uniform_(-1, 1, generator=generator) * self._method.eps
