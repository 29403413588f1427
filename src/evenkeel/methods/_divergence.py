"""How far two predictions for the same items are from each other, for what a model's head can be for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from evenkeel.errors import MethodError
from evenkeel.methods._setting import Problem

__all__ = [
    "Divergence",
    "check_divergence",
    "divergence",
    "precise",
    "squared_difference",
    "symmetric_bernoulli",
    "symmetric_kl",
]

Divergence = Callable[[Tensor, Tensor], Tensor]


def symmetric_kl(one: Tensor, other: Tensor) -> Tensor:
    r"""Return :math:`KL(p \| q) + KL(q \| p) = \sum_c (p_c - q_c)(\log p_c - \log q_c)` of two softmax distributions.

    The right-hand side has no negative term, so that nothing cancels where :math:`p` and :math:`q` are close.

    Args:
        one: finite logits of :math:`p`, shape ``[N, classes]``; computed in float32 at least.
        other: those of :math:`q`, of the same shape.

    Returns:
        Shape ``[N]``, not negative, with gradients into both.

    Example:
        >>> one, other = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> f"{symmetric_kl(one, other).item():.4f}"
        '0.2311'
    """
    log_p, log_q = (precise(logits).log_softmax(-1) for logits in (one, other))
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)


def symmetric_bernoulli(one: Tensor, other: Tensor) -> Tensor:
    r"""Return the symmetric KL divergence of each label's Bernoulli distribution, averaged over the labels.

    With logits :math:`a, b` of one label it is :math:`(\sigma(a) - \sigma(b)) (a - b)`.

    Args:
        one: logits, shape ``[N, labels]``; computed in float32 at least.
        other: logits of the same shape.

    Returns:
        Shape ``[N]``, not negative, with gradients into both.
    """
    one, other = precise(one), precise(other)
    return ((one.sigmoid() - other.sigmoid()) * (one - other)).mean(-1)


def squared_difference(one: Tensor, other: Tensor) -> Tensor:
    """Return the squared difference of two regressions, averaged over what is predicted.

    Args:
        one: predictions, shape ``[N, outputs]``; computed in float32 at least.
        other: predictions of the same shape.

    Returns:
        Shape ``[N]``, with gradients into both.
    """
    return (precise(one) - precise(other)).square().mean(-1)


_DIVERGENCES: Final[dict[Problem, Divergence]] = {
    "classification": symmetric_kl,
    "causal-lm": symmetric_kl,
    "multi-label": symmetric_bernoulli,
    "regression": squared_difference,
}


def divergence(problem: Problem) -> Divergence:
    """Return the divergence for what a model's head is for, one of those that :func:`check_divergence` lets pass."""
    return _DIVERGENCES[problem]


def check_divergence(method: str, problem: Problem, *, regression: bool) -> None:
    """Refuse a model whose predictions cannot be compared.

    Args:
        method: the method's name.
        problem: what the model's head is for.
        regression: whether the method is defined for regressions.

    Raises:
        MethodError: if there is no divergence for the problem, or the method takes none for regressions.
    """
    if problem not in _DIVERGENCES:
        raise MethodError(
            f"{method} compares the predictions of two passes, and does not know what this model predicts; use a model "
            "that classifies sequences or goes on writing them"
        )
    if problem == "regression" and not regression:
        raise MethodError(
            f"{method} compares distributions over classes, and a regression has none; use smart, which compares "
            "numbers as well, or full"
        )


def precise(values: Tensor) -> Tensor:
    """Return values in float32 at least."""
    return values if values.dtype == torch.float64 else values.float()
