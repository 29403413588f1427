"""SMART: predictions that the worst small change of the embeddings does not move, and a slow copy of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from evenkeel.methods._contract import Method, Touched
from evenkeel.methods._divergence import check_divergence, divergence
from evenkeel.methods._embedding_noise import changed_embeddings, token_embeddings
from evenkeel.methods._named import all_placed
from evenkeel.methods._options import check_number
from evenkeel.methods._session import Session
from evenkeel.methods._setting import Batch, Setting, Step
from evenkeel.methods._stand_in import standing_in

__all__ = ["Smart"]


@final
@dataclass(frozen=True, kw_only=True)
class Smart(Method):
    r"""Pull the predictions together for embeddings and for their neighbours that the model tells apart most.

    With the embeddings :math:`x` of the input tokens, the model's prediction :math:`f(x; \theta)`, and :math:`d` the
    symmetric KL divergence (of a regression the squared difference), the loss is

    .. math::
        \ell + \lambda \frac1N \sum_i d(f_i(x + \delta; \theta), f_i(x; \theta))
        + \mu \frac1N \sum_i d(f_i(x; \theta), f_i(x; \tilde\theta)).

    :math:`\delta` starts at :math:`N(0, \sigma^2)` and takes steps :math:`\delta \gets \delta + \eta\, g /
    \|g\|_\infty`, with :math:`g` the gradient of :math:`d` in :math:`\delta`, and the maximum norm of each token on its
    own, as in the authors' code. :math:`\tilde\theta` is the exponential average of the trained weights.

    What is perturbed is what the word embeddings return, before positions and a norm (in the authors' code behind
    them); where an encoder and a decoder share them, on both sides. Beyond that, this follows the formulas where the
    code departs from them: code of the paper's time drops the start of :math:`\delta` after the step, later code scales
    :math:`\delta` to a maximum norm of 1, and gradients flow into one side of each divergence there, here into both. In
    one thing it follows the code: the paper projects :math:`\delta` onto a ball, whose radius of 1e-5 would leave
    nothing of a step of 1e-3 but its signs, and the code does not. For :math:`\tilde\theta` there is no code.

    All passes draw dropout from torch's global generator, each its own, as in the authors' code. Items are examples, or
    labelled tokens of a causal language model; labels of a multi-label model are compared one by one, and their
    divergences averaged. In half precision much of so small a change drowns in rounding. Each step costs a forward and
    a backward pass, and what follows one more of each.

    Source: Jiang et al. 2020, arXiv 1911.03437, algorithm 1, and the text on both regularizers before it.

    Attributes:
        weight: :math:`\lambda`, from 0 on; the paper tries 1, 3 and 5. With 0 embeddings are not perturbed.
        steps: how many steps :math:`\delta` takes, from 1 on; the paper's is 1.
        step_size: :math:`\eta`, above 0; the paper's is 1e-3.
        sigma: :math:`\sigma`, above 0, as at :math:`\delta = 0` there is no gradient; the paper's is 1e-5.
        mu: :math:`\mu`, the weight of the distance to the average, from 0 on; the paper's is 1. With 0, as by default,
            there is no average, which would take a copy of the weights and a forward pass more.
        momentum: what the average keeps of itself in a step, from 0 to below 1; the paper's is 0.99 in the first tenth
            of the steps, and 0.999 from there on.

    Raises:
        MethodError: if an option is out of range or no number.
    """

    name: ClassVar[str] = "smart"
    summary: ClassVar[str] = "symmetric KL to the prediction at adversarially perturbed embeddings"
    source: ClassVar[str] = "Jiang et al. 2020, arXiv 1911.03437"
    touches: ClassVar[frozenset[Touched]] = frozenset({"forward"})

    weight: float = 1.0
    steps: int = 1
    step_size: float = 1e-3
    sigma: float = 1e-5
    mu: float = 0.0
    momentum: float = 0.99

    def __post_init__(self) -> None:
        check_number(self.name, "weight", self.weight, least=0, advice="1, 3 and 5 are usual")
        check_number(self.name, "steps", self.steps, least=1, whole=True, advice="1 is usual")
        check_number(self.name, "step_size", self.step_size, above=0, advice="1e-3 is usual")
        check_number(self.name, "sigma", self.sigma, above=0, advice="1e-5 is usual")
        check_number(self.name, "mu", self.mu, least=0, advice="0 leaves it out, and 1 is usual")
        check_number(self.name, "momentum", self.momentum, least=0, below=1, advice="0.99 is usual")

    def check(self, setting: Setting) -> None:
        """Refuse models whose predictions cannot be compared, and those that do not tell their word embeddings."""
        check_divergence(self.name, setting.problem, regression=True)
        token_embeddings(setting.model, self.name)

    def begin(self, setting: Setting) -> Session:
        """Return the session that makes the other passes."""
        return _SmartSession(self, setting)


@final
class _SmartSession(Session):
    """Makes the other passes, and keeps the average of the weights where that is asked for."""

    def __init__(self, method: Smart, setting: Setting) -> None:
        self._method, self._model = method, setting.model
        self._embeddings = token_embeddings(setting.model, method.name)
        self._frozen = {id(one) for one in setting.model.parameters() if not one.requires_grad}
        self._trained: dict[str, Tensor] = {}
        self._average: dict[str, Tensor] = {}

    def start(self) -> None:
        self._trained = self._averaged()
        self._average = {name: parameter.detach().clone() for name, parameter in self._trained.items()}

    def loss_term(self, batch: Batch) -> Tensor | None:
        terms = []
        if self._method.weight > 0:
            terms.append(self._method.weight * self._adversarial(batch))
        if self._method.mu > 0:
            terms.append(self._method.mu * self._proximal(batch))
        return sum(terms[1:], start=terms[0]) if terms else None

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        if self._average:
            weights = [self._trained[name] for name in self._average]
            torch._foreach_lerp_(list(self._average.values()), weights, 1 - self._method.momentum)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self._average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._trained = self._averaged()
        self._average = all_placed(Smart.name, state["average"], self._trained)

    def _averaged(self) -> dict[str, Tensor]:
        """Collect what is trained, now or in a later phase, and what other methods have added."""
        if self._method.mu == 0:
            return {}
        return {name: one for name, one in self._model.named_parameters() if id(one) not in self._frozen}

    def _adversarial(self, batch: Batch) -> Tensor:
        apart = divergence(batch.problem)
        perturbation = _Perturbation(self._method, self._embeddings, batch)
        clean = batch.logits()
        for _ in range(self._method.steps):
            perturbation.climb(lambda logits: apart(logits, clean.detach()).sum())
        return batch.mean(apart(perturbation.logits(), clean))

    def _proximal(self, batch: Batch) -> Tensor:
        average = ((self._trained[name], tensor) for name, tensor in self._average.items())
        with torch.no_grad(), standing_in(self._model, average):
            _, outputs = batch.again()
        return batch.mean(divergence(batch.problem)(batch.logits(), batch.logits(outputs)))


@final
class _Perturbation:
    """What is added to the embeddings of a batch: a tensor for each call of the module that makes them."""

    def __init__(self, method: Smart, embeddings: Iterable[nn.Module], batch: Batch) -> None:
        self._method, self._embeddings, self._batch = method, embeddings, batch
        self._deltas: list[Tensor] = []
        self._generator: torch.Generator | None = None

    def logits(self) -> Tensor:
        """Run the model with the perturbation and return its logits."""
        with changed_embeddings(self._embeddings, self._add):
            _, outputs = self._batch.again()
        return self._batch.logits(outputs)

    def climb(self, height: Callable[[Tensor], Tensor]) -> None:
        """Take a step towards where ``height`` of the logits is greater."""
        gradients = torch.autograd.grad(height(self.logits()), self._deltas)  # leaves those of parameters alone
        self._deltas = [
            (delta.detach() + self._method.step_size * _direction(gradient)).requires_grad_()
            for delta, gradient in zip(self._deltas, gradients, strict=True)
        ]

    def _add(self, call: int, embedded: Tensor) -> Tensor:
        if call == len(self._deltas):
            self._deltas.append(self._draw(embedded))
        return embedded + self._deltas[call]

    def _draw(self, embedded: Tensor) -> Tensor:
        if self._generator is None:
            self._generator = self._batch.moment.generator(self._method.name, embedded.device)
        noise = torch.empty_like(embedded.detach(), memory_format=torch.contiguous_format)
        return (noise.normal_(generator=self._generator) * self._method.sigma).requires_grad_()


def _direction(gradient: Tensor) -> Tensor:
    """Divide the gradient of each token, shape ``[..., width]``, by its maximum norm; zero stays zero."""
    norm = gradient.abs().amax(-1, keepdim=True)
    return gradient / norm.clamp(min=torch.finfo(norm.dtype).tiny)
