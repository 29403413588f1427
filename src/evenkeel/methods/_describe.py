"""What a method says of itself, as a value: read from its class, its fields and its docstring."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, final, get_args, get_origin, get_type_hints

from evenkeel.methods._contract import Method

__all__ = ["Description", "Option", "describe", "rivals"]

_SECTION = re.compile(
    r"(Args|Arguments|Attributes|Class attributes|Examples?|Parameters|Raises|References|Returns|See also|Sources?"
    r"|Yields):(?:\s+|$)"
)
_ENTRY = re.compile(r"\s*\*{0,2}(\w+)(?:\s*\([^)]*\))?:(?:\s+(.*)|$)")
_FROM_TRAINING = re.compile(r"\bNone\b[^;.]*train", re.IGNORECASE)
_PLAIN = re.compile(r"[A-Za-z0-9][\w./-]*")  # text that needs no quotes on the command line
_NUMBER = re.compile(r"[-+]?\d[\d.]*(?:e[-+]?\d+)?|inf")


@final
@dataclass(frozen=True, kw_only=True)
class Option:
    """One field of a method's configuration.

    Attributes:
        name: the field's name.
        type: its type as Python writes it, with aliases spelt out.
        default: its default as the command line takes it, with what None stands for where the training decides; None
            if there is no default, so that the option must be given.
        meaning: its entry among the docstring's attributes in one line, as reST; empty if there is none.
    """

    name: str
    type: str
    default: str | None
    meaning: str


@final
@dataclass(frozen=True, kw_only=True)
class Description:
    """What can be said of a method without making one.

    Attributes:
        name: the name by which plans and the command line know it.
        summary: what it does, in one line.
        text: the docstring without its sections, as reST; empty if the class has no docstring of its own.
        source: where it is described.
        owns: what it decides, sorted; two methods that own the same thing cannot be mixed.
        options: the fields of its configuration, in order.
    """

    name: str
    summary: str
    text: str
    source: str
    owns: tuple[str, ...]
    options: tuple[Option, ...]

    @property
    def example(self) -> str:
        """The method as ``parse_method`` takes it: with the options that must be given, else with its first number."""
        needed = [f":{option.name}={option.name.upper()}" for option in self.options if option.default is None]
        numbers = [item for item in self.options if item.default is not None and _NUMBER.fullmatch(item.default)]
        given = needed or [f":{option.name}={option.default}" for option in numbers[:1]]
        return self.name + "".join(given)


def describe(method: type[Method]) -> Description:
    """Read what a method says of itself.

    Args:
        method: its class; a poor docstring, or none, leaves the texts that come from it empty.

    Returns:
        The description.

    Example:
        >>> from evenkeel.methods import FullFineTuning
        >>> describe(FullFineTuning).options[0].meaning
        'the norm that the whole gradient may have; positive, ``inf`` clips nothing.'
    """
    body = "\n".join(_sections(method)[""])
    return Description(
        name=method.name,
        summary=" ".join(getattr(method, "summary", "").split()),
        text=re.sub(r"\n{3,}", "\n\n", body).strip(),
        source=" ".join(getattr(method, "source", "").split()),
        owns=tuple(sorted(method.owns)),
        options=_options(method),
    )


def rivals(method: Description, others: Iterable[Description]) -> dict[str, tuple[str, ...]]:
    """Find what a method cannot be mixed with because both decide the same thing.

    Args:
        method: the method.
        others: descriptions of all methods; its own may be among them.

    Returns:
        For each thing that the method owns the names of the others that own it.
    """
    known = [other for other in others if other.name != method.name]
    return {owned: tuple(other.name for other in known if owned in other.owns) for owned in method.owns}


def _sections(method: type) -> dict[str, list[str]]:
    """Part a class's own docstring into lines: each section's under its name, the body's under the empty name."""
    doc = vars(method).get("__doc__") or ""
    if doc.startswith(f"{method.__name__}("):  # dataclass writes a signature where there is no docstring
        doc = ""
    parts: dict[str, list[str]] = {"": []}
    name, paragraph = "", False
    for line in inspect.cleandoc(doc).splitlines():
        if header := _SECTION.match(line):
            name, paragraph = header[1], header.end() < len(line)  # "Source: ..." goes to the next blank line
            line = line[header.end() :]
        elif name and (not line.strip() if paragraph else line[:1].strip()):
            name = ""
        parts.setdefault(name, []).append(line)
    return parts


def _meanings(method: type) -> dict[str, str]:
    """Read the entries of ``Attributes:`` here and in the classes that fields come from."""
    found: dict[str, list[str]] = {}
    for one in reversed(method.__mro__):
        lines = [line for line in _sections(one).get("Attributes", []) if line.strip()]
        margin = min((_indent(line) for line in lines), default=0)
        name = ""
        for line in lines:
            if _indent(line) == margin and (entry := _ENTRY.match(line)):
                name, line = entry[1], entry[2] or ""
                found[name] = []
            found.setdefault(name, []).append(line.strip())
    return {name: " ".join(filter(None, lines)) for name, lines in found.items()}


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _options(method: type[Method]) -> tuple[Option, ...]:
    fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(method) if dataclasses.is_dataclass(method) else ()
    meanings = _meanings(method)
    try:
        types = get_type_hints(method)
    except Exception:  # names that only type checkers know: then the types stand as they were written
        types = {}
    return tuple(
        Option(
            name=field.name,
            type=_type(types.get(field.name, field.type)),
            default=_default(field, meanings.get(field.name, "")),
            meaning=meanings.get(field.name, ""),
        )
        for field in fields
        if field.init and not field.name.startswith("_")
    )


def _type(hint: Any) -> str:
    if isinstance(hint, str):
        return hint
    if get_origin(hint) is Literal:
        return " | ".join(json.dumps(value) if isinstance(value, str) else repr(value) for value in get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        return " | ".join(map(_type, get_args(hint)))
    if hint is NoneType:
        return "None"
    if isinstance(hint, type) and not get_args(hint):
        return hint.__name__
    return re.sub(r"(?<![\w.'\"])(?:[A-Za-z_]\w*\.)+(?=\w)", "", repr(hint))  # without modules


def _default(field: dataclasses.Field[Any], meaning: str) -> str | None:
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        return None
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if value is None and _FROM_TRAINING.search(meaning):
        return "none: as the training says"
    return _written(value)


def _written(value: Any) -> str:
    """Write a value as the command line takes it, where it takes such values."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_written(key)}: {_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_written, value)) + "]"
    if inspect.isroutine(value) or isinstance(value, type):
        return value.__name__
    return " ".join(re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value)).split())  # an address says nothing
