"""What people hand to an optimizer: components, a model, or groups of either or of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from evenkeel.errors import ComponentError
from evenkeel.partition import Component, Components, components

__all__ = ["Given", "as_groups", "refuse_strangers", "trained_parts"]

Given = Components | nn.Module | Iterable[Any]


def as_groups(given: Given, parts: Components | None) -> tuple[list[dict[str, Any]], Components]:
    """Return optimizer groups of parameters, and the components that these are made of.

    Args:
        given: components or a model, for one group; or dictionaries whose ``"params"`` are components, models or
            parameters; or parameters.
        parts: the components; None where ``given`` says what they are.

    Returns:
        Groups as ``torch.optim`` takes them, and the components.

    Raises:
        ComponentError: if there are no parameters, nothing says what their components are, or one is in none.
    """
    listed = [given] if isinstance(given, Components | nn.Module) else list(given)
    mappings = [entry if isinstance(entry, Mapping) else {"params": entry} for entry in listed]
    if listed and not any(isinstance(entry, Mapping | Components | nn.Module) for entry in listed):
        mappings = [{"params": listed}]  # parameters, or single components
    groups: list[dict[str, Any]] = []
    owned: list[Component] = []
    for mapping in mappings:
        parameters, own = _parameters(mapping.get("params"))
        groups.append({**mapping, "params": parameters})
        owned += own
    if not any(group["params"] for group in groups):
        raise ComponentError(
            "the optimizer was given no parameters: the selection fits nothing, everything is frozen, or a generator "
            "was used up; look at evenkeel.components(model)"
        )
    whole = parts if parts is not None else Components(owned)
    refuse_strangers((parameter for group in groups for parameter in group["params"]), whole)
    return groups, whole


def refuse_strangers(parameters: Iterable[Any], parts: Components) -> None:
    """Refuse, by a ``ComponentError``, parameters of which no component says how they are clipped."""
    known = {id(parameter) for part in parts for parameter in part.parameters}
    strangers = [tuple(parameter.shape) for parameter in parameters if id(parameter) not in known]
    if strangers:
        raise ComponentError(
            f"{len(strangers)} of the optimizer's parameters belong to no component, one of shape {strangers[0]} among "
            "them; give the components themselves (evenkeel.components(model), of the model as it is trained), or "
            "pass them as parts beside the groups of parameters"
        )


def trained_parts(groups: Iterable[Mapping[str, Any]], parts: Components) -> Components:
    """Return the components that have a parameter in a group; others are none of the optimizer's business.

    Args:
        groups: the optimizer's groups.
        parts: the components.

    Returns:
        The same object where that is all of them.
    """
    known = {id(parameter) for group in groups for parameter in group["params"]}
    own = [part for part in parts if any(id(parameter) in known for parameter in part.parameters)]
    return parts if len(own) == len(parts) else Components(own)


def _parameters(given: Any) -> tuple[list[Tensor], list[Component]]:
    """Return the parameters of a group, each once and in order, and its components if it says which they are."""
    if isinstance(given, Component | Tensor):
        given = [given]
    entries = components(given) if isinstance(given, nn.Module) else list(given or ())
    own = [entry for entry in entries if isinstance(entry, Component)]
    tensors: list[Any] = []
    for entry in entries:
        named = isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str)  # of named_parameters()
        tensors += entry.parameters if isinstance(entry, Component) else [entry[1] if named else entry]
    strange = next((tensor for tensor in tensors if not isinstance(tensor, Tensor)), None)
    if strange is not None:
        raise ComponentError(
            f"the optimizer was given a {type(strange).__name__} where a component or a parameter belongs; pass "
            "evenkeel.components(model), the model, or groups [{'params': ..., 'lr': ...}]"
        )
    return list(dict.fromkeys(tensors)), own
