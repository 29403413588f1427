"""A folder that is written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evenkeel.errors import StoreError

__all__ = ["check_new_folder", "new_folder"]


def check_new_folder(out: Path, *, advice: str = "choose a new folder with --out") -> None:
    """Refuse a folder that something is in already; nothing is made.

    Args:
        out: the folder.
        advice: what to do if something is in it.

    Raises:
        StoreError: if it is no folder, or not empty, or no place to rename a folder to.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StoreError(f"'{out}' exists and is not empty; {advice}")
    if out.resolve().is_mount():  # the finished folder is renamed to its place, which no mount point allows
        raise StoreError(f"'{out}' is a mount point; choose a folder inside it with --out")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a folder to write into, which takes the place of ``out`` in the end; if anything is raised, it goes.

    Args:
        out: a folder that :func:`check_new_folder` let pass.

    Yields:
        An empty folder on the same file system.

    Raises:
        StoreError: if there can be none. What is raised while it is written is the writer's.
    """
    home = out.resolve()  # "." has no name to replace
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=home.parent, prefix=".evenkeel-")
    except OSError as error:
        raise StoreError(f"'{out}' cannot be written ({error.strerror}); choose another folder with --out") from error
    with scratch:
        made = Path(scratch.name) / "made"
        made.mkdir()
        yield made
        os.replace(made, home)  # an empty folder gives way
