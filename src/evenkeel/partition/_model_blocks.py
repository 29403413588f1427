"""The blocks of a model as modules: what runs as which layer, and which parameters belong to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from evenkeel.errors import ComponentError
from evenkeel.partition._blocks import Block, find_stacks
from evenkeel.partition._names import plain_parameters, plain_tree

__all__ = ["ModelBlock", "blocks"]


@dataclass(frozen=True, kw_only=True)
class ModelBlock:
    """A module that runs as a layer.

    Attributes:
        name: dotted name of the module, without wrappers.
        module: the module itself; where something wraps it (activation checkpointing, ``torch.compile``), what is
            inside.
        stack: ``"encoder"`` or ``"decoder"`` where a model has both, the name of a tower where it has several, else
            None; as in :class:`Component`.
        layer: its number in the stack, 0 nearest the embeddings; of a module that is several layers, the lowest.
        shared: whether several layers of the model use it.
        parameters: the parameters of the layer by their dotted names without wrappers, frozen ones among them: those of
            the module, and those of modules that stand in lists beside it, such as XLM's norms. A parameter that
            several layers share is in the lowest of them.
    """

    name: str
    module: nn.Module = field(repr=False)
    stack: str | None
    layer: int
    shared: bool
    parameters: Mapping[str, nn.Parameter] = field(repr=False, compare=False)


def blocks(model: nn.Module) -> tuple[ModelBlock, ...]:
    """Find the modules that run as the layers of a model: one for each module object, layer and stack.

    They are found as :func:`components` finds layers. Of lists that stand beside each other and are one stack together,
    such as XLM's attentions and norms, only the members of the first are blocks.

    Args:
        model: any module; its weights are not read, so it may live on the ``meta`` device.

    Returns:
        The blocks, stack after stack as the model holds them, each from its lowest layer to its highest; none where the
        model has no layers.

    Raises:
        ComponentError: if ``model`` is no module, or FSDP1 hides its parameters.

    Example:
        >>> layer = lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> model = nn.ModuleDict({"layers": nn.ModuleList([layer(), layer()]), "head": nn.Linear(2, 2)})
        >>> [(block.name, block.layer, list(block.parameters)) for block in blocks(model)][1]
        ('layers.1', 1, ['layers.1.0.weight', 'layers.1.0.bias'])
    """
    if not isinstance(model, nn.Module):
        raise ComponentError(
            f"blocks() was given a {type(model).__name__}; it needs the model itself, a torch.nn.Module"
        )
    modules = plain_tree(model).modules
    stacks = find_stacks(modules)
    parameters: dict[tuple[str, int], dict[str, nn.Parameter]] = defaultdict(dict)
    for names, parameter in plain_parameters(model):
        block = stacks.block_of(names[0])
        if block is not None:
            parameters[block.stack, block.layer][names[0]] = parameter
    return tuple(
        ModelBlock(
            name=block.name,
            module=modules[block.name],
            stack=block.stack or None,
            layer=block.layer,
            shared=block.shared or repeated,
            parameters=parameters[block.stack, block.layer],
        )
        for block, repeated in _layers(stacks.blocks, modules)
    )


def _layers(found: Mapping[str, Block], modules: Mapping[str, nn.Module]) -> list[tuple[Block, bool]]:
    """Choose one block for each layer and module, in order, and say whether its module is another layer too."""
    main: dict[tuple[str, int], Block] = {}
    for block in found.values():  # lists beside a list of layers come after it
        main.setdefault((block.stack, block.layer), block)
    order = {stack: place for place, stack in enumerate(dict.fromkeys(stack for stack, _ in main))}
    layers = sorted(main.values(), key=lambda block: (order[block.stack], block.layer))
    users: dict[int, list[Block]] = defaultdict(list)
    for block in layers:
        users[id(modules[block.name])].append(block)
    return [(same[0], len(same) > 1) for same in users.values()]
