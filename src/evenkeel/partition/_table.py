"""The tables of rules: read from the data files, from entry points and from users; looked up by class and name."""

from __future__ import annotations

import functools
import importlib.metadata
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from evenkeel.errors import ComponentError
from evenkeel.partition._layout import Rule, parse

__all__ = [
    "COMMON",
    "Found",
    "Roles",
    "RuleTable",
    "Rules",
    "entry_point_table",
    "family_of",
    "family_table",
    "read_table",
]

COMMON = "common"
IN_BLOCK, OUTSIDE = "block", "outside"  # tables of names that mean the same everywhere, not those of a class
_FOLDER = Path(__file__).parent / "rules"
_GROUP = "evenkeel.roles"
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")

Rules = Mapping[str, Mapping[str, str | list[str]]]
Roles = Rules | str | Path  # rules as people give them: themselves, or a TOML file


@dataclass(frozen=True, kw_only=True)
class Found:
    """The rules that a name has in a table, where they stand, and the name and its numbers that were looked up."""

    rules: tuple[Rule, ...]
    table: str
    key: str
    name: str
    numbers: tuple[str, ...]


class RuleTable:
    """Rules by class or place, and by dotted name; ``#`` in a name stands for a number, ``*`` for any one word.

    Example:
        >>> table = RuleTable({"Attention": {"q": "query"}, "block": {"mlp.fc1": "ffn_in"}})
        >>> table.of_class("Attention", "q").rules[0].parts[0].role
        'query'
        >>> table.of_names("block", "deep.mlp.fc1").rules[0].parts[0].role
        'ffn_in'
    """

    def __init__(self, rules: Rules) -> None:
        """Read ``rules``: for each class, or ``"block"`` or ``"outside"``, names and what they are."""
        self._rules: dict[str, dict[str, tuple[Rule, ...]]] = {}
        self._patterns: dict[str, dict[str, re.Pattern[str]]] = {}
        self._seen: dict[tuple[str, str], Found | None] = {}
        for table, names in rules.items():
            if not isinstance(names, Mapping):
                raise ComponentError(
                    f"roles has {names!r} for '{table}'; it needs a mapping of names to rules for each class of "
                    "modules, or for 'block' and 'outside'"
                )
            if not all(isinstance(name, str) for name in (table, *names)):
                raise ComponentError(f"roles names {table!r} and {list(names)!r}; classes and names must be text")
            self._rules[table] = {name: _parsed(table, name, text) for name, text in names.items()}
            self._patterns[table] = {name: _pattern(name) for name in names if "*" in name.split(".")}

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return ((table, name) for table, names in self._rules.items() for name in names)

    def knows(self, table: str) -> bool:
        """Return whether there are rules for a class or place."""
        return table in self._rules

    def of_class(self, class_name: str, name: str) -> Found | None:
        """Return what a class's table says of a name.

        Args:
            class_name: name of the module's class.
            name: dotted name of a parameter or a module, relative to the module.

        Returns:
            The rules, or None.
        """
        names = self._rules.get(class_name)
        return None if names is None else self._find(class_name, names, name, ())

    def of_names(self, table: str, name: str) -> Found | None:
        """Return what the table says of the longest end of a name.

        Args:
            table: ``"block"`` or ``"outside"``.
            name: dotted name of a parameter or a module.

        Returns:
            The rules, or None.
        """
        key = (table, name)
        if key not in self._seen:  # the blocks of a stack have the same names
            self._seen[key] = self._longest(table, self._rules.get(table, {}), name)
        return self._seen[key]

    def _longest(self, table: str, names: dict[str, tuple[Rule, ...]], name: str) -> Found | None:
        bits = name.split(".")
        for start in range(len(bits)):
            before = tuple(bit for bit in bits[:start] if bit.isdigit())
            found = self._find(table, names, ".".join(bits[start:]), before)
            if found is not None:
                return found
        return None

    def _find(self, table: str, names: dict[str, tuple[Rule, ...]], name: str, before: tuple[str, ...]) -> Found | None:
        if name in names:
            return Found(rules=names[name], table=table, key=name, name=name, numbers=before)
        key, numbers = _NUMBER.sub("#", name), tuple(_NUMBER.findall(name))
        if not numbers or key not in names:
            key, numbers = self._by_pattern(table, name)
        if not key:
            return None
        return Found(rules=names[key], table=table, key=key, name=name, numbers=(*before, *numbers))

    def _by_pattern(self, table: str, name: str) -> tuple[str, tuple[str, ...]]:
        """Return the first key with a ``*`` that fits, and what its stars and numbers stand for."""
        for key, pattern in self._patterns.get(table, {}).items():
            found = pattern.fullmatch(name)
            if found:
                return key, found.groups()
        return "", ()


def _pattern(key: str) -> re.Pattern[str]:
    bits = {"*": r"([^.]+)", "#": r"(\d+)"}
    return re.compile(r"\.".join(bits.get(bit, re.escape(bit)) for bit in key.split(".")))


def _parsed(table: str, name: str, text: object) -> tuple[Rule, ...]:
    texts = [item for item in (text if isinstance(text, list) else [text]) if isinstance(item, str)]
    if not texts or texts != (text if isinstance(text, list) else [text]):
        raise ComponentError(
            f"the rule for '{name}' of '{table}' is {text!r}; it needs a text such as 'query | key | value', or a list "
            "of them of which the first whose condition holds is used"
        )
    return tuple(parse(item) for item in texts)


def read_table(roles: Roles) -> RuleTable:
    """Read a user's rules.

    Args:
        roles: a mapping as in :class:`RuleTable`, or a TOML file that holds one.

    Returns:
        The table.

    Raises:
        ComponentError: if the file cannot be read, or a rule cannot be understood.
    """
    if isinstance(roles, Mapping):
        return RuleTable(roles)
    if not isinstance(roles, str | Path):
        raise ComponentError(
            f"roles is a {type(roles).__name__}; it needs a mapping of classes to names and rules, or a TOML file"
        )
    try:
        content = tomllib.loads(Path(roles).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # no file, no text, no TOML
        raise ComponentError(f"the rules in '{roles}' cannot be read ({error}); give a TOML file of rules") from error
    return RuleTable(content)


@functools.cache
def family_of(cls: type) -> str:
    """Return the family that a class belongs to: the file that defines it, without ``modeling_``.

    Args:
        cls: class of a module.

    Returns:
        ``"gpt2"`` for ``transformers.models.gpt2.modeling_gpt2``; ``"torch"`` for torch's own modules; empty for what
        lies in no file of that kind of name.
    """
    home = cls.__module__
    if home.startswith("torch."):
        return "torch"
    file = home.rpartition(".")[2]
    # Anybody may have a file gpt2.py; those that begin like transformers' own are meant to be like them.
    return file.removeprefix("modeling_") if file.startswith("modeling_") else ""


@functools.cache
def family_table(family: str) -> RuleTable | None:
    """Return the rules that the package has for a family.

    Args:
        family: as :func:`family_of` names it.

    Returns:
        The table, or None where there is none.
    """
    path = _FOLDER / f"{family}.toml"
    return read_table(path) if family and path.is_file() else None


@functools.cache
def entry_point_table() -> RuleTable | None:
    """Return the rules that installed packages add by entry points of the group ``evenkeel.roles``.

    Returns:
        All their rules in one table, or None where there are none.

    Raises:
        ComponentError: if one cannot be loaded, or two speak of the same name.
    """
    merged: dict[str, dict[str, str | list[str]]] = {}
    for point in importlib.metadata.entry_points(group=_GROUP):
        try:
            rules = point.load()
            rules = rules() if callable(rules) else rules
            items = [(table, name, rule) for table, names in rules.items() for name, rule in names.items()]
        except Exception as error:  # somebody else's code
            raise ComponentError(
                f"the rules '{point.name}' of the entry point '{point.value}' cannot be loaded ({error}); mend or "
                "remove the package that brings them"
            ) from error
        for table, name, rule in items:
            if name in merged.setdefault(table, {}):
                raise ComponentError(
                    f"two packages bring rules for '{name}' of '{table}' (one is '{point.value}'); remove one of them"
                )
            merged[table][name] = rule
    return RuleTable(merged) if merged else None
