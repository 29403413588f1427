"""The components of a model as a small tree of values: what is alike is told once."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

from evenkeel.partition import Component

__all__ = ["OUTSIDE", "Node", "Total", "fold", "names_alike", "ranges", "totals", "uncut"]

OUTSIDE = "outside the blocks"
_LEAF = re.compile(r"\.(?:weight|bias)(?=#\d+$|$)")  # "#0" tells paths apart that would be the same
_PARAMETER = re.compile(r"(?:^|[._])(?:weight|bias)$")
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True, kw_only=True)
class Node:
    """A stack, a group of alike layers, a fused tensor, or, without children, a line of components.

    Attributes:
        label: what it is called; alike numbers are written as ranges.
        size: entries of all that it stands for.
        count: how many alike things it stands for: layers, or experts.
        role: role of a line's components; empty where there are children.
        shapes: shapes of a line's components, the weight before the bias, of one of the alike things.
        cut: of a fused tensor, how it is cut, in the words of the rule.
        tied: other names of a line's parameters.
        children: what it consists of; of alike layers, one of them.
    """

    label: str
    size: int
    count: int = 1
    role: str = ""
    shapes: tuple[tuple[int, ...], ...] = ()
    cut: str = ""
    tied: tuple[str, ...] = ()
    children: tuple[Node, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Total:
    """What a role has in a model.

    Attributes:
        role: the role.
        components: number of components.
        size: number of entries.
        share: share of all entries, between 0 and 1.
    """

    role: str
    components: int
    size: int
    share: float


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A node without children, and the fused tensor that it is cut from: its name and its cut, or two empty texts."""

    node: Node
    tensor: str
    cut: str


def fold(parts: Sequence[Component], *, alike: bool = True) -> tuple[Node, ...]:
    """Arrange components as a tree: stacks, layers, fused tensors, components.

    Args:
        parts: the fine partition.
        alike: tell alike layers, alike experts, and the weight and bias of one thing, only once; else every component
            has its own line.

    Returns:
        The nodes of the upmost level: those of the only stack, or one for each stack that has a name.
    """
    stacks: dict[str | None, list[Component]] = {}
    for part in parts:
        stacks.setdefault(part.stack, []).append(part)
    nodes: list[Node] = []
    for stack, members in stacks.items():
        inside = _stack(members, alike)
        nodes.extend(inside if stack is None else [_above(stack, inside)])
    return tuple(nodes)


def _stack(parts: Sequence[Component], alike: bool) -> tuple[Node, ...]:
    """Make the nodes of what is outside the blocks, and of the layers."""
    layers: dict[int | None, list[Component]] = {}
    for part in parts:
        layers.setdefault(part.layer, []).append(part)
    same: dict[tuple[object, ...], list[int]] = {}
    nodes: dict[object, Node] = {}
    for layer, members in layers.items():
        inside = _lines(members, alike)
        if layer is None:
            nodes[layer] = _above(OUTSIDE, inside)
            continue
        shared = all(part.shared for part in members)
        key = (inside, shared) if alike else (layer,)
        same.setdefault(key, []).append(layer)
        count = len(same[key])
        label = f"layer {ranges(sorted(same[key]))}" + (f", {count} alike" if count > 1 else "")
        node = _above(label + (", shared by several layers" if shared else ""), inside)
        nodes[key] = replace(node, count=count, size=node.size * count)
    return tuple(nodes.values())


def _above(label: str, children: tuple[Node, ...]) -> Node:
    return Node(label=label, size=sum(child.size for child in children), children=children)


def _lines(parts: Sequence[Component], alike: bool) -> tuple[Node, ...]:
    """Make the lines of one layer, those that are cut from the same tensor beneath a node for it."""
    words: dict[str, list[Component]] = {}
    for part in parts:
        words.setdefault(_word(part, alike), []).append(part)
    lines = [_line(word, members, alike) for word, members in words.items()]
    nodes: dict[object, list[Node]] = {}
    for line in _numbers_folded(lines) if alike else lines:
        nodes.setdefault((line.tensor, line.cut) if line.cut else line.node.label, []).append(line.node)
    return tuple(
        replace(_above(key[0], tuple(members)), cut=key[1]) if isinstance(key, tuple) else members[0]
        for key, members in nodes.items()
    )


def _word(part: Component, alike: bool) -> str:
    """Return the path without stack and layer and, where lines are folded, without what is the same for all lines."""
    bits = ((part.stack,) if part.stack else ()) + (("layer", str(part.layer)) if part.layer is not None else ())
    path = part.path.removeprefix("".join(f"{bit}." for bit in bits))
    return _LEAF.sub("", path) if alike else path


def _line(word: str, parts: Sequence[Component], alike: bool) -> _Line:
    ordered = sorted(parts, key=lambda part: part.kind == "bias")
    first = ordered[0]
    node = Node(
        label=f"{word}.bias" if alike and first.kind == "bias" else word,
        size=sum(part.size for part in parts),
        role=first.role or "",
        shapes=tuple(part.shape for part in ordered),
        tied=tuple(dict.fromkeys(_NUMBER.sub("#", alias) for part in ordered for alias in part.aliases)),
    )
    name = _PARAMETER.sub("", first.pieces[0].name)
    return _Line(node=node, tensor=_NUMBER.split(name)[-1].strip(".") or name, cut=first.cut)


def _numbers_folded(lines: Iterable[_Line]) -> list[_Line]:
    """Make one line of those that differ in nothing but the numbers in their words."""
    groups: dict[_Line, list[_Line]] = {}
    for line in lines:
        alike = replace(line, node=replace(line.node, label=_NUMBER.sub("#", line.node.label)))
        groups.setdefault(alike, []).append(line)
    folded: list[_Line] = []
    for alike, members in groups.items():
        numbers = [tuple(map(int, _NUMBER.findall(line.node.label))) for line in members]
        places = [sorted(set(place)) for place in zip(*numbers, strict=True)]
        if len(members) == 1 or len(members) != prod(map(len, places)):  # some are missing: ranges would hide it
            folded.extend(members)
            continue
        written = iter(map(ranges, places))
        label = re.sub("#", lambda _: next(written), alike.node.label)  # noqa: B023  used at once
        node = replace(alike.node, label=label, count=len(members), size=alike.node.size * len(members))
        folded.append(replace(alike, node=node))
    return folded


def ranges(numbers: Sequence[int]) -> str:
    """Write rising numbers briefly.

    Args:
        numbers: whole numbers, each larger than the one before.

    Returns:
        The first and the last of three or more at even distances; else the numbers, those without a gap as ranges.

    Example:
        >>> ranges([0, 1, 2, 5]), ranges([1, 3, 5, 7]), ranges([0, 4])
        ('0-2, 5', '1-7 by 2', '0, 4')
    """
    steps = {after - before for before, after in itertools.pairwise(numbers)}
    if len(numbers) > 2 and len(steps) == 1 and steps != {1}:
        return f"{numbers[0]}-{numbers[-1]} by {steps.pop()}"
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def totals(parts: Sequence[Component]) -> tuple[Total, ...]:
    """Count components and entries by role.

    Args:
        parts: the fine partition.

    Returns:
        One total for each role that occurs, the largest first.
    """
    components = Counter(part.role or "" for part in parts)
    sizes: Counter[str] = Counter()
    for part in parts:
        sizes[part.role or ""] += part.size
    whole = sum(sizes.values())
    return tuple(
        Total(role=role, components=components[role], size=size, share=size / whole if whole else 0.0)
        for role, size in sizes.most_common()
    )


def uncut(parts: Sequence[Component]) -> tuple[Component, ...]:
    """Return the weights that hold queries, keys and values at once and that no rule cuts.

    Args:
        parts: the fine partition.

    Returns:
        The components, in order.
    """
    return tuple(
        part for part in parts if part.role == "qkv" and part.kind == "weight" and len(part.shape) > 1 and not part.cut
    )


def names_alike(parts: Iterable[Component]) -> dict[str, int]:
    """Count components whose names differ in numbers alone.

    Args:
        parts: components.

    Returns:
        How many there are of each name, with ``#`` for every number.

    Example:
        >>> import torch
        >>> names_alike(ek.components(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))))
        {'#.weight': 2, '#.bias': 2}
    """
    return dict(Counter(_NUMBER.sub("#", part.name) for part in parts))
