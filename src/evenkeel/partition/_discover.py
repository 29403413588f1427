"""Finding the components of a model."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from math import prod

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from evenkeel.errors import ComponentError
from evenkeel.partition._blocks import Block, Stacks, find_stacks
from evenkeel.partition._component import Component, Piece
from evenkeel.partition._components import Components
from evenkeel.partition._flat import FlatShard, flat_shards
from evenkeel.partition._names import plain_parameters, plain_tree
from evenkeel.partition._regroup import By, regroup
from evenkeel.partition._resolve import Claim, Resolver
from evenkeel.partition._table import Roles, read_table

__all__ = ["components"]


def components(model: nn.Module, by: By = "tensor", *, roles: Roles | None = None) -> Components:
    """Find what a model is made of: every trainable gradient entry in exactly one component.

    A tied parameter is one component, under its first name. A frozen parameter is in none; ask again once it is
    released. A tensor that holds several projections, such as GPT-2's ``c_attn`` or the stacked experts of a mixture,
    is cut into the parts that the forward pass uses. Layers come from the repeated blocks, roles and cuts from tables
    of rules, and what no rule claims has the role ``"other"``. Wrappers (DDP, FSDP, ``torch.compile``, activation
    checkpointing, PEFT) change no names.

    Args:
        model: any module; its weights are not read, so it may live on the ``meta`` device.
        by: ``"tensor"`` (the paper's partition), ``"module"``, ``"role"``, ``"layer"``, ``"global"``, or a function
            from a component to the hashable that it is grouped by.
        roles: rules that go before those of the package: a mapping from a module's class (or ``"block"``,
            ``"outside"``) to a mapping from names to rules, or a TOML file of that; see ``docs/components.md``.

    Returns:
        The components, in the order of the model's parameters.

    Raises:
        ComponentError: if nothing is trainable, a parameter is not initialised yet, a rule of ``roles`` fits nothing
            or the cut of a rule does not fit its parameter, or ``by`` cannot group.

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
    tree = plain_tree(model)
    stacks = find_stacks(tree.modules)
    resolver = Resolver(tree, None if roles is None else read_table(roles))
    shards = flat_shards(model)
    parts: list[Component] = []
    for names, parameter in plain_parameters(model):
        if is_lazy(parameter):
            raise ComponentError(
                f"parameter '{names[0]}' is lazy: its shape is not known yet; run one forward pass before asking for "
                "components"
            )
        if not parameter.requires_grad:  # its shape may be anything, such as that of quantized weights
            resolver.note(names[0], stacks.block_of(names[0]))
            continue
        block = stacks.block_of(names[0])
        piece = _piece(names[0], parameter, shards.get(id(parameter)))
        claim = _best([resolver.claim(name, piece.shape, stacks.block_of(name)) for name in names])
        shared = _is_shared(names, block, stacks)
        stack = block.stack if block else stacks.tower_of(names[0])
        parts.extend(_cut(names, piece, claim, block=block, stack=stack, shared=shared))
    if not parts:
        raise ComponentError(
            f"{type(model).__name__} has no trainable parameter, so it has no components; set requires_grad=True on "
            "what you want to train first"
        )
    resolver.refuse_unused()
    return regroup(Components(_told_apart(parts)), by)


def _best(claims: list[Claim]) -> Claim:
    """Of what a tied parameter is by each of its names, take the table of words, else the first that a rule knows."""
    known = [claim for claim in claims if claim.role != "other"]
    return next((claim for claim in claims if claim.role == "embedding"), (known or claims)[0])


def _piece(name: str, parameter: Tensor, flat: FlatShard | None) -> Piece:
    return Piece(
        name=name, shape=tuple(parameter.shape) if flat is None else flat.shape, parameter=parameter, flat=flat
    )


def _cut(
    names: tuple[str, ...], piece: Piece, claim: Claim, *, block: Block | None, stack: str, shared: bool
) -> Iterator[Component]:
    """Make the components of one parameter."""
    name = names[0]
    whole = Component(
        name=name,
        path="",
        stack=stack or None,
        layer=block.layer if block else None,
        role=claim.role,
        kind="bias" if name.endswith("bias") else "weight",
        shape=piece.shape,
        size=piece.size,
        shared=shared,
        aliases=names[1:],
        pieces=(piece,),
    )
    before = (*((stack,) if stack else ()), *(("layer", str(block.layer)) if block else ()))
    if not claim.cuts:
        yield replace(whole, path=_path(before, claim.word, claim.numbers, claim.leaf, claim.role))
    for cut in claim.cuts:
        numbers = claim.numbers if cut.expert is None else (*claim.numbers, str(cut.expert))
        yield replace(
            whole,
            name=f"{name}[{cut.label}]",
            path=_path(before, cut.part.word, numbers, claim.leaf, cut.part.role),
            role=cut.part.role,
            shape=cut.shape,
            size=prod(cut.shape),
            pieces=(replace(piece, spans=cut.spans, cut=claim.cut),),
        )


def _path(before: tuple[str, ...], word: str, numbers: tuple[str, ...], leaf: str, role: str) -> str:
    leaf = "" if role == "embedding" and leaf == "weight" and word.startswith("embedding.") else leaf
    return ".".join(bit for bit in (*before, word, *numbers, leaf) if bit)


def _is_shared(names: tuple[str, ...], block: Block | None, stacks: Stacks) -> bool:
    if block is None:
        return False
    return block.shared or any(stacks.block_of(name) not in (block, None) for name in names[1:])


def _told_apart(parts: list[Component]) -> list[Component]:
    """Number the paths that several components would share: thresholds and results go by them."""
    counts = Counter(part.path for part in parts)
    numbers = {path: itertools.count() for path, count in counts.items() if count > 1}
    return [
        replace(part, path=f"{part.path}#{next(numbers[part.path])}") if part.path in numbers else part
        for part in parts
    ]
