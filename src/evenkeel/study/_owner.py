"""Who holds a study: machine, process, since when; for the message that a second driver gets."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

__all__ = ["read_owner", "write_owner"]

_LARGEST = 4096  # bytes; more is none of ours


def write_owner(path: Path) -> None:
    """Say that this process holds the study.

    Args:
        path: the file, written beside and renamed.
    """
    since = datetime.now(UTC).isoformat(timespec="seconds")
    beside = path.with_name(f"{path.name}.new")
    beside.unlink(missing_ok=True)
    with beside.open("x", encoding="utf-8") as file:  # a link that somebody laid is not followed
        json.dump({"host": platform.node(), "pid": os.getpid(), "since": since}, file)
    os.replace(beside, path)


def read_owner(path: Path) -> str:
    """Tell who holds the study.

    Args:
        path: the file.

    Returns:
        Words in brackets, with a space before them; empty where nobody says so in a way that can be shown.
    """
    try:
        if path.is_symlink() or path.stat().st_size > _LARGEST:
            return ""
        said = json.loads(path.read_text(encoding="utf-8"))
        text = f" (process {int(said['pid'])} on {str(said['host'])[:100]}, since {str(said['since'])[:40]})"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return text if text.isprintable() else ""
