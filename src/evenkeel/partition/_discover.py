"""Finding the components of a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from evenkeel.errors import ComponentError
from evenkeel.partition._component import Component, Components
from evenkeel.partition._regroup import By, regroup
from evenkeel.partition._roles import IN_BLOCK, OUTSIDE, find_role

__all__ = ["components"]

# What wrappers put before a parameter's name; the wrapped model has the same names as the plain one.
WRAPPERS = ("module.", "_orig_mod.")


def components(model: nn.Module, by: By = "tensor") -> Components:
    """Find what a model is made of: every trainable parameter tensor, or a coarser grouping of them.

    A tied parameter is one component, under its first name. A frozen parameter is in none; ask again once it is
    released. The layer is the index in the outermost ``ModuleList`` of alike blocks; role and path come from a table
    of names, and what no rule claims has the role ``"other"``.

    Args:
        model: any module; its weights are not read, so it may live on the ``meta`` device.
        by: ``"tensor"`` (the paper's partition), ``"module"``, ``"role"``, ``"layer"``, ``"global"``, or a function
            from a component to the hashable that it is grouped by.

    Returns:
        The components, in the order of the model's parameters.

    Raises:
        ComponentError: if nothing is trainable, a parameter is not initialised yet, or ``by`` cannot group.

    Source: Yang & Ma 2022, arXiv 2210.10325, section 4.

    Example:
        >>> parts = components(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)))
        >>> [part.name for part in parts]
        ['0.weight', '0.bias', '1.weight', '1.bias']
    """
    if not isinstance(model, nn.Module):
        raise ComponentError(
            f"components() was given a {type(model).__name__}; it needs the model itself (a torch.nn.Module), because "
            "the names of its modules say what each parameter is for"
        )
    blocks = _blocks(model)
    stacked = len({stack for stack, _, _ in blocks.values()}) > 1
    parts = [_component(names, parameter, blocks=blocks, stacked=stacked) for names, parameter in _trainable(model)]
    if not parts:
        raise ComponentError(
            f"{type(model).__name__} has no trainable parameter, so it has no components; set requires_grad=True on "
            "what you want to train first"
        )
    return regroup(Components(parts), by)


def _trainable(model: nn.Module) -> Iterable[tuple[tuple[str, ...], nn.Parameter]]:
    """Yield every trainable parameter once, with all its names."""
    names: dict[int, list[str]] = defaultdict(list)
    tensors: dict[int, nn.Parameter] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if is_lazy(parameter):
            raise ComponentError(
                f"parameter '{name}' is lazy: its shape is not known yet; run one forward pass before asking for "
                f"components"
            )
        if parameter.requires_grad:
            names[id(parameter)].append(_unwrapped(name))
            tensors[id(parameter)] = parameter
    for key, parameter in tensors.items():
        yield tuple(names[key]), parameter


def _unwrapped(name: str) -> str:
    while name.startswith(WRAPPERS):
        name = name.split(".", 1)[1]
    return name


def _blocks(model: nn.Module) -> dict[str, tuple[str, str, int]]:
    """Map the dotted name of every block to its stack's name, its own name and its layer.

    Blocks are the members of an outermost ``ModuleList`` that are all of one class and have parameters.
    """
    found: dict[str, tuple[str, str, int]] = {}
    lists: list[str] = []
    for raw, module in model.named_modules():
        name = _unwrapped(raw + ".").rstrip(".")
        if not isinstance(module, nn.ModuleList) or any(name.startswith(outer + ".") for outer in lists):
            continue
        if len({type(child) for child in module}) == 1 and next(module.parameters(), None) is not None:
            lists.append(name)
            found.update({f"{name}.{index}": (name, f"{name}.{index}", index) for index in range(len(module))})
    return found


def _component(
    names: tuple[str, ...], parameter: Tensor, *, blocks: dict[str, tuple[str, str, int]], stacked: bool
) -> Component:
    name = names[0]
    module, _, leaf = name.rpartition(".")
    stack, block, layer = _block_of(module, blocks)
    inside = layer is not None
    found = find_role(module[len(block) + 1 :] if inside else module, IN_BLOCK if inside else OUTSIDE)
    role, word = found or ("other", module[len(block) + 1 :] if inside else module)
    leaf = "" if role == "embedding" and leaf == "weight" else leaf
    path = ".".join(bit for bit in (stack if stacked else "", f"layer.{layer}" if inside else "", word, leaf) if bit)
    return Component(
        name=name,
        path=path,
        stack=(stack or None) if stacked else None,
        layer=layer,
        role=role,
        kind="bias" if name.endswith("bias") else "weight",
        shape=tuple(parameter.shape),
        size=parameter.numel(),
        aliases=names[1:],
        parameters=(parameter,),
    )


def _block_of(module: str, blocks: dict[str, tuple[str, str, int]]) -> tuple[str, str, int | None]:
    """Return stack, block and layer of the module, from the longest prefix of its name that is a block."""
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        entry = blocks.get(".".join(parts[:end]))
        if entry:
            stack = next((bit for bit in reversed(entry[0].split(".")) if bit in ("encoder", "decoder")), "")
            return stack, entry[1], entry[2]
    return "", "", None
