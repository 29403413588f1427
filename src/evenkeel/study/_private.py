"""Text without what is the machine owner's alone: home folder, user name, secrets of the environment."""

from __future__ import annotations

import getpass
import os
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

__all__ = ["private", "private_traceback"]

_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
_SHORTEST_SECRET = 6  # a shorter value would be found in ordinary words
_LIBRARY = re.compile(r".*/(?:site-packages|dist-packages|lib/python\d[\d.]*)/")
_PACKAGE = Path(__file__).parents[2]


def private(text: str) -> str:
    """Take out of a text what should not leave its owner's machine.

    Args:
        text: any text.

    Returns:
        The text, with ``~`` for the home folder, ``<user>`` for the user's name as a part of a path, and ``***`` for
        the value of every environment variable whose name tells of a token, key or password.
    """
    for secret in _secrets():
        text = text.replace(secret, "***")
    for home in _homes():
        text = re.sub(re.escape(home) + r"(?![\w.-])", "~", text)
    user = _user()
    return re.sub(rf"(?<=[/\\]){re.escape(user)}(?![\w.-])", "<user>", text) if user else text


def private_traceback(error: BaseException) -> str:
    """Write a traceback that names no folder of the machine: files stand there as inside of their package.

    Args:
        error: the exception.

    Returns:
        The traceback.
    """
    told = traceback.TracebackException.from_exception(error)
    for part in _chain(told, set()):
        for frame in part.stack:
            _ = frame.line  # read now, from where the file is
            frame.filename = _inside(frame.filename)
    return private("".join(told.format()))


def _chain(told: traceback.TracebackException, seen: set[int]) -> Iterator[traceback.TracebackException]:
    if id(told) in seen:
        return
    seen.add(id(told))
    yield told
    for other in (told.__cause__, told.__context__, *(told.exceptions or () if hasattr(told, "exceptions") else ())):
        if other is not None:
            yield from _chain(other, seen)


def _inside(file: str) -> str:
    path = Path(file)
    if path.is_relative_to(_PACKAGE):
        return str(path.relative_to(_PACKAGE))
    shorter = _LIBRARY.sub("", file)
    return shorter if shorter != file or not path.is_absolute() else path.name


def _secrets() -> list[str]:
    found = {value for name, value in os.environ.items() if _SECRET.search(name) and len(value) >= _SHORTEST_SECRET}
    return sorted(found, key=len, reverse=True)  # one may be a part of another


def _homes() -> list[str]:
    try:
        home = Path.home()
    except RuntimeError:  # nobody's
        return []
    return [name for name in dict.fromkeys((str(home), os.path.realpath(home))) if len(name) > 1]


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id without a name
        return ""
