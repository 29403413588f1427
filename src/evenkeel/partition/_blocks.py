"""The repeated blocks of a model: which module is which layer of which stack."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

__all__ = ["Block", "Stacks", "find_stacks"]

# Lists of modules that are no layers, by the last bit of their name.
_NO_LAYERS = frozenset({"experts", "heads", "classifiers", "lm_heads", "adapters", "projections", "tail"})
# Blocks that stand for several layers, by class, where the configuration has more layers than there are blocks.
_SHARED = frozenset({"AlbertLayerGroup"})


@dataclass(frozen=True, kw_only=True)
class Block:
    """One layer of a stack.

    Attributes:
        name: dotted name of its module.
        stack: label of its stack, empty for the only one.
        layer: its number, 0 nearest the embeddings.
        shared: whether several layers of the model use it.
    """

    name: str
    stack: str
    layer: int
    shared: bool = False


@dataclass(frozen=True, kw_only=True)
class Stacks:
    """All blocks by name, and the towers that belong to labelled stacks.

    Attributes:
        blocks: the blocks by the dotted name of their module.
        towers: label of the stack by the dotted name of the module that holds it and its surroundings.
    """

    blocks: Mapping[str, Block] = field(default_factory=dict)
    towers: Mapping[str, str] = field(default_factory=dict)

    def block_of(self, name: str) -> Block | None:
        """Return the block that a dotted name lies in, or None."""
        return next((self.blocks[end] for end in _prefixes(name) if end in self.blocks), None)

    def tower_of(self, name: str) -> str:
        """Return the label of the stack in whose tower a dotted name lies, or nothing."""
        return next((self.towers[end] for end in _prefixes(name) if end in self.towers), "")


def _prefixes(name: str) -> Iterable[str]:
    """Yield the name itself, then every shorter beginning of it, down to the model's own, which is empty."""
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""


def find_stacks(modules: Mapping[str, nn.Module]) -> Stacks:
    """Find the outermost lists of modules that have modules themselves; equally long lists beside them belong to them.

    Args:
        modules: every module by its plain dotted name, parents before children, without wrappers.

    Returns:
        The blocks and their stacks.
    """
    lists: dict[str, list[str]] = {}
    for name, module in modules.items():
        if any(end in lists for end in _prefixes(name)):
            continue
        members = _members(name, module, modules)
        if members and any(any(modules[member].children()) for member in members) and _holds_layers(name, module):
            lists[name] = members
    beside = _beside(modules, lists)
    labels = _labels([name for name in lists if name not in beside])
    blocks: dict[str, Block] = {}
    for name, members in lists.items():
        stack = labels[beside.get(name, name)][0]
        layers = _flat(members, modules)
        shared = any(type(modules[member]).__name__ in _SHARED for member in members) and _depth(name, modules) > len(
            layers
        )
        numbered = isinstance(modules[name], nn.ModuleDict)  # by its keys: a pipeline's stage may begin anywhere
        for place, block in enumerate(layers):
            layer = int(block.rpartition(".")[2]) if numbered else place
            blocks[block] = Block(name=block, stack=stack, layer=layer, shared=shared)
    return Stacks(blocks=blocks, towers={tower: label for label, tower in labels.values() if label})


def _members(name: str, module: nn.Module, modules: Mapping[str, nn.Module]) -> list[str]:
    """Return the names of a list's members; none where the module is no list."""
    keys = list(module._modules)
    if not isinstance(module, nn.ModuleList | nn.Sequential | nn.ModuleDict) or not all(map(str.isdigit, keys)):
        return []
    if not _has_parameters(module):
        return []
    members = [f"{name}.{key}" if name else key for key in keys]
    return [member for member in members if member in modules]


def _holds_layers(name: str, module: nn.Module) -> bool:
    if name.rpartition(".")[2] in _NO_LAYERS:
        return False
    # A Sequential is as often the parts of one thing in a row: it holds layers where they are alike.
    return not isinstance(module, nn.Sequential) or (len(module) > 1 and len({type(child) for child in module}) == 1)


def _beside(modules: Mapping[str, nn.Module], lists: dict[str, list[str]]) -> dict[str, str]:
    """Map lists that stand beside a list of layers, as XLM's norms do, to it, and add them to ``lists``."""
    first: dict[tuple[str, int], str] = {}
    beside: dict[str, str] = {}
    for name, members in lists.items():
        kept = first.setdefault((name.rpartition(".")[0], len(members)), name)
        if kept != name:
            beside[name] = kept
    for name, module in modules.items():
        if name in lists or any(end in lists for end in _prefixes(name)):
            continue
        members = _members(name, module, modules)
        main = first.get((name.rpartition(".")[0], len(members)))
        if members and main is not None and isinstance(module, nn.ModuleList):
            lists[name] = members
            beside[name] = main
    return beside


def _flat(members: list[str], modules: Mapping[str, nn.Module]) -> list[str]:
    """Resolve lists of lists, as Funnel's, and blocks that hold nothing but alike blocks, as ALBERT's groups."""
    flat: list[str] = []
    for member in members:
        inner = member if isinstance(modules[member], nn.ModuleList) else _only_list(member, modules)
        names = _members(inner, modules[inner], modules) if inner else []
        alike = len({type(modules[name]) for name in names}) == 1 and any(modules[names[0]].children())
        flat.extend(names if alike else [member])
    return flat


def _only_list(name: str, modules: Mapping[str, nn.Module]) -> str:
    own = [key for key, child in modules[name]._modules.items() if child is not None and _has_parameters(child)]
    child = f"{name}.{own[0]}" if len(own) == 1 else ""
    return child if isinstance(modules.get(child), nn.ModuleList) else ""


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _depth(name: str, modules: Mapping[str, nn.Module]) -> int:
    """Return how many layers the configuration speaks of, 0 where it says nothing."""
    for end in _prefixes(name):
        layers = getattr(getattr(modules.get(end), "config", None), "num_hidden_layers", None)
        if isinstance(layers, int):
            return layers
    return 0


def _labels(names: list[str]) -> dict[str, tuple[str, str]]:
    """Name each stack by where its path leaves that of the others, and say up to where its tower reaches.

    The stack whose list stands directly where paths part is the main one there, and adds nothing to the label.
    """
    found: dict[str, tuple[str, str]] = {}

    def divide(group: list[list[str]], depth: int, label: str) -> None:
        if len(group) == 1:
            found[".".join(group[0])] = (label, ".".join(group[0][:depth]) if label else "")
            return
        shared = depth
        while all(len(path) > shared + 1 and path[shared] == group[0][shared] for path in group):
            shared += 1
        branches: dict[str, list[list[str]]] = {}
        for path in group:
            branches.setdefault(path[shared], []).append(path)
        main = next((bit for bit, paths in branches.items() if len(paths[0]) == shared + 1), None)
        for bit, paths in branches.items():
            if bit == main:
                found[".".join(paths[0])] = (label, ".".join(paths[0][:shared]) if label else "")
            else:
                divide(paths, shared + 1, f"{label}.{bit}" if label else bit)

    if names:
        divide([name.split(".") for name in names], 0, "")
    return found
