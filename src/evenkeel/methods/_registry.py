"""Methods by name: those of evenkeel, and those that other packages bring through entry points.

A package adds a method by an entry point of the group ``evenkeel.methods`` that points to a :class:`Method` class.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeGuard

import yaml

from evenkeel.errors import EvenkeelError, MethodError, unknown_name
from evenkeel.methods._contract import Method
from evenkeel.methods._mix import Mix

__all__ = ["known_methods", "mix_parts", "parse_method", "parse_mix"]


def _own() -> Iterator[type[Method]]:
    """Yield the method of every public module of this package, by name: one file, one method."""
    package = importlib.import_module("evenkeel.methods")
    for module in sorted(found.name for found in pkgutil.iter_modules(package.__path__) if found.name[0] != "_"):
        source = importlib.import_module(f"evenkeel.methods.{module}")
        yield from filter(_is_method, (getattr(source, public) for public in source.__all__))


def _is_method(value: object) -> TypeGuard[type[Method]]:
    return isinstance(value, type) and issubclass(value, Method)


@cache
def known_methods() -> dict[str, type[Method]]:
    """Collect every method class by its name.

    Returns:
        The classes, evenkeel's own first, by name.

    Raises:
        MethodError: if two classes have one name, or an entry point holds no method.
    """
    found: dict[str, type[Method]] = {}
    for method in (*_own(), *(point.load() for point in entry_points(group="evenkeel.methods"))):
        if not _is_method(method):
            raise MethodError(f"the entry point {method!r} of the group evenkeel.methods is no class of Method")
        if method.name in found:
            raise MethodError(
                f"two methods are named '{method.name}': {found[method.name].__module__} and {method.__module__}; "
                "uninstall or rename one"
            )
        found[method.name] = method
    return found


def parse_method(text: str) -> Method:
    """Make a method from its name and options: ``name``, ``name:option=value``, ``name:option={query: 0.1, "*": 1}``.

    Args:
        text: what a plan or the command line says; values are read as YAML.

    Returns:
        The method.

    Raises:
        MethodError: if the name or an option is unknown, an option is given twice, or a value cannot be.

    Example:
        >>> parse_method("component-clip:max_norm=0.1").max_norm
        0.1
    """
    name, *options = re.split(r":(?=\w+=|[^:{}]*$)", text.strip())
    known = known_methods()
    if name not in known:
        raise MethodError(unknown_name("method", name, known))
    fields = {field.name for field in dataclasses.fields(known[name])}  # type: ignore[arg-type]  # methods are dataclasses
    values = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise MethodError(f"'{option}' in '{text}' is no option; write {name}:option=value")
        if key not in fields:
            raise MethodError(unknown_name(f"option of {name}", key, fields or {"(none)"}))
        if key in values:
            raise MethodError(f"'{text}' gives the option '{key}' twice; keep one of them")
        if not value.strip():
            raise MethodError(f"'{option}' in '{text}' gives no value; write {key}=value, or {key}=null for none")
        values[key] = _value(value, text)
    try:
        return known[name](**values)
    except EvenkeelError as error:
        raise MethodError(f"{text}: {error}") from error
    except TypeError as error:
        raise MethodError(f"{text}: a value is of the wrong type ({error})") from error


def _value(value: str, text: str) -> Any:
    """Read ``value`` as YAML, and as numbers what YAML 1.1 takes for text: ``1e-3``, ``inf``."""
    try:
        read = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError) as error:  # as of the 31st of a February
        raise MethodError(f"'{value}' in '{text}' cannot be read as YAML; put text in quotes") from error
    return {key: _number(item) for key, item in read.items()} if isinstance(read, dict) else _number(read)


def _number(read: Any) -> Any:
    if isinstance(read, str):
        with contextlib.suppress(ValueError):
            return float(read)
    return read


def parse_mix(text: str) -> Mix:
    """Make a mix from names joined by ``+``.

    Args:
        text: ``a`` or ``a+b``, each as in :func:`parse_method`.

    Returns:
        The mix.

    Raises:
        MethodError: if a part cannot be parsed, or the parts cannot be mixed.
    """
    return Mix(tuple(parse_method(part) for part in mix_parts(text)))


def mix_parts(text: str) -> list[str]:
    """Split a mix at the signs that join its methods: the plus of 1e+3, or in a mapping, joins nothing.

    Args:
        text: ``a`` or ``a+b``, each with its options.

    Returns:
        The text of each method.

    Example:
        >>> mix_parts("component-clip:max_norm=1e+3+llrd")
        ['component-clip:max_norm=1e+3', 'llrd']
    """
    return [part.strip() for part in re.split(r"\+(?=\s*(?:[A-Za-z]|$))(?![^{]*\})", text)]
