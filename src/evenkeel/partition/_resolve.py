"""What the rules say of a parameter: users' first, then other packages', the family's, common names, structure."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from evenkeel.errors import ComponentError
from evenkeel.partition._blocks import Block
from evenkeel.partition._expression import Look
from evenkeel.partition._layout import Cut, Rule
from evenkeel.partition._names import Tree, plain
from evenkeel.partition._roles import joint
from evenkeel.partition._table import (
    COMMON,
    IN_BLOCK,
    OUTSIDE,
    Found,
    RuleTable,
    entry_point_table,
    family_of,
    family_table,
)

__all__ = ["Claim", "Resolver"]

# Adapters whose first dimension is the output of what they adapt; they are cut as it is.
_OUTPUT_ADAPTERS = ("lora_B", "lora_magnitude_vector")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a parameter is.

    Attributes:
        role: role of the whole; of a parameter that is cut, the role of all parts together.
        word: its word in the path.
        numbers: numbers in its name that tell it from its like in the same block.
        leaf: the end of its path.
        cuts: its parts; none where it is one component.
        cut: how it is cut, in the words of the rule.
    """

    role: str
    word: str
    numbers: tuple[str, ...]
    leaf: str
    cuts: tuple[Cut, ...] = ()
    cut: str = ""


class Resolver:
    """Looks parameters up in the tables of rules, for one model."""

    def __init__(self, tree: Tree, own: RuleTable | None) -> None:
        """Resolve names in a model, with ``own`` rules before all others."""
        self._modules = tree.modules
        self._adapters = tree.adapted
        self._own = own
        self._used: set[tuple[str, str]] = set()
        self._tables = [table for table in (own, entry_point_table()) if table is not None]

    def claim(self, name: str, shape: tuple[int, ...], block: Block | None) -> Claim:
        """Say what a parameter is.

        Args:
            name: its plain dotted name.
            shape: its shape.
            block: the block that it lies in.

        Returns:
            Role, path and cuts.

        Raises:
            ComponentError: if a rule's cut does not fit the parameter.
        """
        module, parameter, tail = self._parametrized(name) or self._adapted(name)
        if not tail:
            return self._claim(name, shape, block)
        base = self._rule(f"{module}.{parameter}", block)
        if base is None:
            return Claim(role="other", word=_relative(module, block), numbers=(), leaf=tail)
        rule, found, look = base
        role, word = _whole(rule)
        claim = Claim(role=role, word=word, numbers=found.numbers, leaf=tail)
        if tail.split(".")[0] not in _OUTPUT_ADAPTERS or rule.whole or rule.experts:
            return claim
        return replace(claim, cuts=tuple(replace(rule, dim=0).cuts(name, shape, look)), cut=rule.text)

    def note(self, name: str, block: Block | None) -> None:
        """Look a frozen parameter up, so that a user's rule for it counts as used.

        Args:
            name: its plain dotted name.
            block: the block that it lies in.
        """
        if self._own is not None:
            self._rule(name, block)

    def refuse_unused(self) -> None:
        """Raise a ComponentError if one of the user's own rules has fitted nothing."""
        unused = [key for key in self._own or () if key not in self._used]
        if unused:
            raise ComponentError(
                "roles names "
                + ", ".join(f"'{name}' of '{table}'" for table, name in unused)
                + ", which holds for nothing in this model: no parameter has that name there, or another rule is "
                "nearer for each; names of a class are relative to its modules, those of 'block' and 'outside' are the "
                "ends of dotted names"
            )

    def _claim(self, name: str, shape: tuple[int, ...], block: Block | None) -> Claim:
        module, _, leaf = name.rpartition(".")
        entry = self._rule(name, block)
        if entry is None:
            role, word = self._by_structure(module, shape, block)
            return Claim(role=role, word=word, numbers=(), leaf=leaf)
        rule, found, look = entry
        role, word = _whole(rule)
        if found.name.rpartition(".")[2] == leaf:  # the rule speaks of the parameter itself, not of its module
            leaf = "bias" if leaf.endswith("bias") else "weight"
        claim = Claim(role=role, word=word, numbers=found.numbers, leaf=leaf)
        if rule.whole:
            return claim
        if not rule.experts and len(shape) == 1 and len(rule.parts) > 1:
            rule = replace(rule, dim=0)  # a bias has the output's dimension alone
        elif isinstance(self._modules.get(module), nn.Linear):
            rule = replace(rule, dim=0)  # where a Linear took the place of GPT-2's Conv1D
        return replace(claim, cuts=tuple(rule.cuts(name, shape, look)), cut=rule.text)

    def _parametrized(self, name: str) -> tuple[str, str, str] | None:
        """Split what torch's parametrizations (weight norm and its kin) make of a parameter in the same way."""
        module, found, rest = name.partition(".parametrizations.")
        parameter, _, tail = rest.partition(".")
        return (module, parameter, f"{parameter}.{tail}") if found and tail else None

    def _adapted(self, name: str) -> tuple[str, str, str]:
        """Split an adapter's parameter into the module and the parameter that it adapts, and its own name.

        The latter is empty where the parameter is none of an adapter.
        """
        bits = name.split(".")
        for end in range(len(bits) - 1, 0, -1):
            around = ".".join(bits[:end])
            if around in self._adapters and bits[end] != "base_layer":
                module = plain(around)
                if not hasattr(self._modules[module], bits[end]):
                    return module, self._adapters[around], ".".join(bit for bit in bits[end:] if bit != "default")
        return name, "", ""

    def _rule(self, name: str, block: Block | None) -> tuple[Rule, Found, Look] | None:
        for found, home in self._found(name, block):
            look = self._look(home, name)
            for rule in found.rules:
                if rule.holds(look):
                    return rule, replace(found, numbers=found.numbers[_layer_numbers(found, home, block) :]), look
        return None

    def _found(self, name: str, block: Block | None) -> Iterator[tuple[Found, str]]:
        """Yield what tables say of a parameter, the first to be preferred, with the module that each stands for."""
        module = name.rpartition(".")[0]
        inside = name[len(block.name) + 1 :] if block else name
        place = IN_BLOCK if block else OUTSIDE
        homes = list(_ancestors(module))
        for table in self._tables:
            for home in homes:
                for class_name in _class_names(type(self._modules[home])) if home in self._modules else ():
                    for found in _in_class(table, class_name, name, home):
                        yield self._mark(table, found), home
            for found in _in_names(table, place, inside):
                yield self._mark(table, found), module
        for home in homes:
            kind: Any = type(self._modules[home]) if home in self._modules else object
            for class_name, table in _family_tables(kind):
                for found in _in_class(table, class_name, name, home):
                    yield found, home
        common = family_table(COMMON)
        if common is not None:
            for found in _in_names(common, place, inside):
                yield found, module

    def _mark(self, table: RuleTable, found: Found) -> Found:
        if table is self._own:
            self._used.add((found.table, found.key))
        return found

    def _look(self, home: str, name: str) -> Look:
        """Look words up on the module that the rule stands for, the parameter's modules, and their configurations."""
        owner = name.rpartition(".")[0]

        def look(word: str) -> Any:
            places = dict.fromkeys([home, owner, owner.rpartition(".")[0], ""])
            modules = [self._modules[place] for place in places if place in self._modules]
            for scope in (*modules, *(getattr(module, "config", None) for module in modules)):
                if scope is not None and hasattr(scope, word):
                    return getattr(scope, word)
            raise AttributeError(f"neither the module '{home or 'model'}' nor its configuration has '{word}'")

        return look

    def _by_structure(self, module: str, shape: tuple[int, ...], block: Block | None) -> tuple[str, str]:
        """Fall back on what the module is where no rule knows its name."""
        owner = self._modules.get(module)
        word = _relative(module, block)
        last = word.rpartition(".")[2] or "norm"
        if "norm" in type(owner).__name__.lower() and len(shape) <= 1:
            return "norm", word if last.isdigit() else last
        if isinstance(owner, nn.Embedding) and block is None:
            return "embedding", f"embedding.{last}"
        if isinstance(owner, nn.Conv1d):
            return "conv", word
        return "other", word


def _whole(rule: Rule) -> tuple[str, str]:
    """Return the role and the word of all parts of a rule together."""
    role = joint(part.role for part in rule.parts)
    return role, role if len(rule.parts) > 1 else rule.parts[0].word


def _layer_numbers(found: Found, home: str, block: Block | None) -> int:
    """Return how many of the numbers in a name of a class around the block are the block's own: the path has those."""
    if block is None or found.table in (IN_BLOCK, OUTSIDE) or not block.name.startswith(f"{home}." if home else ""):
        return 0
    return sum(bit.isdigit() for bit in block.name[len(home) :].split("."))


def _relative(module: str, block: Block | None) -> str:
    return module[len(block.name) + 1 :] if block else module


def _ancestors(module: str) -> Iterator[str]:
    """Yield the names of all modules around a parameter, the outermost first: it knows the most."""
    yield ""
    for index, letter in enumerate(module):
        if letter == ".":
            yield module[:index]
    if module:
        yield module


def _class_names(cls: type) -> list[str]:
    return [base.__name__ for base in cls.__mro__ if base not in (nn.Module, object)]


@functools.cache
def _family_tables(cls: type) -> tuple[tuple[str, RuleTable], ...]:
    """Return the class's names in the tables of the families that define it and its bases."""
    tables = ((base.__name__, family_table(family_of(base))) for base in cls.__mro__ if base is not object)
    return tuple((name, table) for name, table in tables if table is not None and table.knows(name))


def _in_class(table: RuleTable, class_name: str, name: str, home: str) -> Iterator[Found]:
    relative = name[len(home) + 1 :] if home else name
    for key in (relative, relative.rpartition(".")[0]):
        found = table.of_class(class_name, key) if key else None
        if found is not None:
            yield found


def _in_names(table: RuleTable, place: str, inside: str) -> Iterator[Found]:
    for key in (inside, inside.rpartition(".")[0]):
        found = table.of_names(place, key) if key else None
        if found is not None:
            yield found
