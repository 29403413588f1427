"""A model that runs for a while with other tensors in place of its parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

__all__ = ["put", "standing_in"]


@contextmanager
def standing_in(model: nn.Module, tensors: Iterable[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Let tensors take the places of parameters, as long as the context lasts.

    The parameters keep their values, unlike where values are exchanged: passes that were made before can still be
    differentiated, and what autocast keeps of the parameters is not taken for what stands in.

    Args:
        model: the model; a parameter that is tied to another place is replaced in both.
        tensors: pairs of a parameter and what takes its place.

    Yields:
        Nothing.

    Example:
        >>> import torch
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> with standing_in(layer, [(layer.weight, torch.tensor([[2.0]]))]):
        ...     layer(torch.ones(1))
        tensor([2.])
        >>> isinstance(layer.weight, nn.Parameter)
        True
    """
    chosen = {id(parameter): (parameter, tensor) for parameter, tensor in tensors}
    places = [
        (module, name, *chosen[id(parameter)])
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if id(parameter) in chosen
    ]
    try:
        for module, name, _, tensor in places:
            put(module, name, tensor)
        yield
    finally:
        for module, name, parameter, _ in places:
            put(module, name, parameter)


def put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor, which may be no parameter, into the place of a module's parameter."""
    module._parameters[name] = tensor  # type: ignore[assignment]  # as torch.func.functional_call does
