"""Which versions of other people's frameworks the integrations were tested with."""

from __future__ import annotations

import functools
import re
import warnings
from importlib import metadata

__all__ = ["TESTED", "warn_untested"]

# By the name on the package index: the oldest and the newest release line, both included, that the tests were run with.
TESTED: dict[str, tuple[str, str]] = {
    "accelerate": ("1.15", "1.15"),
    "deepspeed": ("0.19", "0.19"),
    "lightning": ("2.6", "2.6"),
    "optax": ("0.2", "0.2"),
    "transformers": ("5.23", "5.23"),
}


@functools.cache  # once for each framework and process: clipping happens in every step
def warn_untested(framework: str) -> None:
    """Warn where the installed version of a framework is older or newer than those tested.

    Args:
        framework: one of ``TESTED``.
    """
    try:
        version = metadata.version(framework)
    except metadata.PackageNotFoundError:  # put on the path by hand
        return
    oldest, newest = TESTED[framework]
    if not _line(oldest) <= _line(version) <= _line(newest):
        tested = oldest if oldest == newest else f"{oldest} to {newest}"
        warnings.warn(
            f"{framework} {version} is installed, and evenkeel was tested with {framework} {tested}: what it relies on "
            "may have changed; look whether the logged clip_rate makes sense, or install a tested version",
            stacklevel=3,
        )


def _line(version: str) -> tuple[int, ...]:
    """Return the release line, the first two numbers, which is what compatibility hangs on."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
