"""What a checkpoint says of itself: whose it is, and the sum of every file, so that nothing half or foreign is read."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

__all__ = ["Manifest", "read_manifest", "sync", "sync_folder", "write_manifest"]

_FILE = "evenkeel_checkpoint.json"
_VERSION = 2  # 1: with a table of norms in place of the Recorder's own files
_LARGEST = 1_000_000  # bytes; a manifest that is larger is none of ours


class Manifest(BaseModel):
    """What a checkpoint says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: int = _VERSION
    run: str
    step: int
    provenance: dict[str, Any]
    wall_seconds: float
    cpu_seconds: float
    peak_memory: dict[str, int]
    within_epoch: bool
    files: dict[str, tuple[int, str]] = {}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest`` with the size and hash of every file of ``folder``, and see that all of it is on the disk."""
    files = {path.name: (path.stat().st_size, _hash(path)) for path in sorted(folder.iterdir())}
    text = manifest.model_copy(update={"files": files}).model_dump_json(indent=2)
    (folder / _FILE).write_text(text + "\n", encoding="utf-8")
    for path in folder.iterdir():
        sync(path)
    sync_folder(folder)


def read_manifest(folder: Path) -> Manifest | None:
    """Read the manifest of a checkpoint.

    Args:
        folder: the checkpoint.

    Returns:
        The manifest; None unless the folder holds just the files that it names, each as it was written and none of
        them a link.
    """
    file = folder / _FILE
    try:
        if folder.is_symlink() or file.is_symlink() or not file.is_file() or file.stat().st_size > _LARGEST:
            return None
        manifest = Manifest.model_validate_json(file.read_bytes())
        found = {path.name: path for path in folder.iterdir() if path.name != _FILE}
        if manifest.version != _VERSION or found.keys() != manifest.files.keys():
            return None
        whole = all(
            path.is_file()
            and not path.is_symlink()
            and (path.stat().st_size, _hash(path)) == tuple(manifest.files[name])
            for name, path in found.items()
        )
    except (OSError, ValidationError, ValueError):
        return None
    return manifest if whole else None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """See that a file is on the disk, not only in the machine's memory."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """See that a folder's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
