"""Parameters by name, and the tensors that a method keeps for them in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from evenkeel.errors import MethodError
from evenkeel.partition import Component

__all__ = ["all_placed", "parameters_of", "placed"]


def parameters_of(parts: Iterable[Component]) -> dict[str, Tensor]:
    """Collect the parameters that components own entries of, each once.

    Args:
        parts: the components.

    Returns:
        The whole parameters, by their dotted names, in order.
    """
    return {piece.name: piece.tensor() for part in parts for piece in part.pieces}


def placed(method: str, kept: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring tensors from a checkpoint to the devices of the parameters that they belong to.

    Args:
        method: the method's name.
        kept: tensors by the names of parameters.
        parameters: the parameters by name.

    Returns:
        The tensors, on the parameters' devices.

    Raises:
        MethodError: if they are of other parameters.
    """
    unknown = sorted(kept.keys() - parameters.keys())
    if unknown:
        raise MethodError(
            f"{method}: the checkpoint keeps '{unknown[0]}' ({len(unknown)} such in all), and this model does not "
            "train it; resume with the same model and the same parameters frozen"
        )
    return {name: tensor.to(parameters[name].device) for name, tensor in kept.items()}


def all_placed(method: str, kept: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring tensors from a checkpoint to the devices of the parameters, each of which must have one; as :func:`placed`.

    Args:
        method: the method's name.
        kept: tensors by the names of parameters.
        parameters: the parameters by name.

    Returns:
        The tensors, on the parameters' devices.

    Raises:
        MethodError: if they are of other parameters, or one is missing.
    """
    missing = sorted(parameters.keys() - kept.keys())
    if missing:
        raise MethodError(
            f"{method}: the checkpoint keeps nothing for '{missing[0]}' ({len(missing)} such in all); resume with the "
            "options that it was written with and the same parameters frozen, or begin a new training"
        )
    return placed(method, kept, parameters)
