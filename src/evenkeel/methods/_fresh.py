"""What the weights of a module are before they are trained, as the model itself would draw them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from evenkeel.errors import MethodError
from evenkeel.partition import Component

__all__ = ["drawn_anew"]

_STD = 0.02  # BERT's, for models that say nothing
_MAPS = (nn.Linear, nn.Embedding, nn.Conv1d)  # and transformers' Conv1D, which is a linear map


@torch.no_grad()
def drawn_anew(
    model: nn.Module,
    root: nn.Module,
    parts: Mapping[Tensor, Component],
    generator: torch.Generator,
    std: float | None,
) -> list[tuple[Tensor, Tensor]]:
    """Draw the weights of a module as in the beginning of pretraining, on the CPU; nothing is changed.

    What they are is known to the model, where it is one of transformers': its ``_init_weights`` knows norms whose
    neutral weight is 0, projections with a scale of their own, biases that begin elsewhere than at 0. What that leaves
    out, or all where there is none, is drawn as BERT's: matrices from N(0, 0.02^2), biases 0, norms 1.

    Args:
        model: the whole model.
        root: a module of it.
        parts: a component of each parameter of the module.
        generator: where draws come from, on the CPU.
        std: standard deviation of the weights of linear maps and embeddings; None for the model's own.

    Returns:
        The parameters of the module, and what they begin with.

    Raises:
        MethodError: if nobody knows how a parameter begins.
    """
    anew = copy.deepcopy(root).to("cpu")
    for parameter in anew.parameters():
        vars(parameter).pop("_is_hf_initialized", None)  # or transformers leaves it alone
        parameter.data = torch.full_like(parameter, torch.nan)
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator.get_state())  # transformers draws from the global generator
        anew.apply(_own_initialiser(model, root))
        maps = {id(module.weight) for module in anew.modules() if _is_map(module)}
        pairs = list(zip(root.parameters(), anew.parameters(), strict=True))
        for own, fresh in pairs:
            unknown = bool(fresh.isnan().any())
            matrix = fresh.dim() > 1 and parts[own].role != "norm"
            if (std is not None and id(fresh) in maps) or (unknown and matrix):
                nn.init.normal_(fresh, std=_STD if std is None else std)
            elif unknown:
                fresh.fill_(_constant(parts[own]))
    return [(own, fresh.detach()) for own, fresh in pairs]


def _own_initialiser(model: nn.Module, root: nn.Module) -> Callable[[nn.Module], Any]:
    """Return how the innermost model around a module initialises modules; nothing where no model says."""
    around = [module for module in model.modules() if any(one is root for one in module.modules())]
    found = [one for module in around if callable(one := getattr(module, "_init_weights", None))]
    return found[-1] if found else lambda _: None


def _is_map(module: nn.Module) -> bool:
    return isinstance(module, _MAPS) or type(module).__name__ == "Conv1D"


def _constant(part: Component) -> float:
    if part.kind == "bias":
        return 0.0
    if part.role == "norm":
        return 1.0
    raise MethodError(
        f"nobody says how '{part.name}' begins: it is neither a matrix, a bias nor a norm, and the model's "
        "_init_weights does not know it; draw fewer layers anew, or use another method for this model"
    )
