"""What a run needs and the driver has: how it comes to machines that do not see the driver's files."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from evenkeel.errors import EngineError

__all__ = ["Parcel", "beacon", "cache_folder", "pack", "unpack"]

_LEFT_OUT = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".onnx", ".gguf", ".py"}  # never loaded


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """A model's folder, to be sent.

    Attributes:
        name: of the folder.
        files: what is in its files, by name; mapped into memory and not read before it is sent.
    """

    name: str
    files: Mapping[str, np.ndarray[Any, np.dtype[np.uint8]]]


def pack(folder: Path) -> Parcel:
    """Pack what a model is loaded from: its weights as safetensors, its configuration, its tokenizer.

    Args:
        folder: a folder that ``save_pretrained`` wrote.

    Returns:
        The parcel.
    """
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix not in _LEFT_OUT]
    files = {
        path.name: np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8) for path in paths
    }
    return Parcel(name=Path(os.path.abspath(folder)).name, files=files)


def unpack(fingerprint: str, fetch: Callable[[], Parcel], into: Path) -> Path:
    """Have a model's folder on this machine: from an earlier time, or from a parcel; once for all processes.

    Args:
        fingerprint: of the model, by which it is kept.
        fetch: returns the parcel; called only where it is not here yet.
        into: where models are kept.

    Returns:
        The folder.

    Raises:
        EngineError: if it cannot be written.
    """
    home = into / fingerprint
    try:
        into.mkdir(parents=True, exist_ok=True)
        with FileLock(into / f".{fingerprint}.lock"):
            if not home.is_dir():
                _write(fetch(), home)
        return next(path for path in home.iterdir() if path.is_dir())
    except OSError as error:
        raise EngineError(
            f"the model cannot be kept on a node of the cluster, in '{into}' ({error.strerror or error}); make room "
            "there, or let XDG_CACHE_HOME name another folder before Ray is started"
        ) from error


def _write(parcel: Parcel, home: Path) -> None:
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=".writing-") as scratch:
        made = Path(scratch) / "made"
        folder = made / Path(parcel.name).name
        folder.mkdir(parents=True)
        for name, content in parcel.files.items():
            content.tofile(folder / Path(name).name)
        os.replace(made, home)


def cache_folder() -> Path:
    """Return where this machine keeps models that were sent to it; whoever deletes it loses time alone."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evenkeel" / "models"


@contextmanager
def beacon(folder: Path) -> Iterator[Path]:
    """Put a file with a name of its own into a folder: a process that sees it, sees this machine's files.

    Args:
        folder: the folder.

    Yields:
        The file.
    """
    made = tempfile.mkdtemp(dir=folder, prefix=".evenkeel-here-")
    try:
        yield Path(made)
    finally:
        shutil.rmtree(made, ignore_errors=True)
