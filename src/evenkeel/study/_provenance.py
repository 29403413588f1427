"""What a run was made with: versions, commit, device; nothing that tells of the machine's owner."""

from __future__ import annotations

import platform
import shutil
import subprocess
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from evenkeel.clipping import cpu

__all__ = ["checkout", "provenance"]

_PACKAGE = Path(__file__).parents[1]
_GIT_SECONDS = 10.0


def provenance(device: torch.device) -> dict[str, Any]:
    """Say what a run was made with: versions, device and threads; no path, name or token of the machine's owner.

    Args:
        device: what it ran on.

    Returns:
        Plain JSON values; with ``commit`` and ``dirty`` (whether files differ from it) where evenkeel runs from a
        checkout.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    packages = ["evenkeel", "torch", "transformers", "accelerate", "datasets"]
    if device.type == "cpu" and cpu.available():
        packages.append("numba")  # whose kernels round sums otherwise, in the last digit, than torch's operations
    return {
        "versions": {package: version(package) for package in packages},
        "python": platform.python_version(),
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        **checkout(_PACKAGE),
    }


@lru_cache(maxsize=1)
def checkout(package: Path) -> dict[str, Any]:
    """Return commit and state of the checkout that a package runs from.

    Args:
        package: the package's folder.

    Returns:
        ``commit``, and ``dirty``: whether the sources differ from it; nothing where it was installed, or lies in
        somebody else's repository.
    """
    root = package.parents[1]
    git = shutil.which("git")
    if git is None or package != root / "src" / package.name or not (root / ".git").exists():
        return {}
    try:
        commit = _git(git, root, "rev-parse", "HEAD")
        changed = _git(git, root, "status", "--porcelain", "--", "src")
    except (OSError, subprocess.SubprocessError):  # no git here, or a repository that it refuses
        return {}
    return {"commit": commit, "dirty": bool(changed)}


def _git(git: str, root: Path, *arguments: str) -> str:
    found = subprocess.run(  # noqa: S603  our own words
        [git, "--no-optional-locks", "-C", str(root), *arguments],
        check=True, capture_output=True, text=True, timeout=_GIT_SECONDS, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return found.stdout.strip()
