"""Matrices of which the first tier takes a few rows, and the second the others."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def few(values: Iterable[Any], first: Collection[Any]) -> list[Any]:
    """Return the values as parameters: those in ``first`` for the first tier, the others marked slow."""
    return [pytest.param(value, marks=[pytest.mark.slow] * (value not in first)) for value in values]
