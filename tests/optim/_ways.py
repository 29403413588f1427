"""Tests of a whole module by CPU kernels and by torch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from evenkeel.clipping import cpu

__all__ = ["kernels"]


@pytest.fixture(
    params=[True, pytest.param(False, marks=pytest.mark.slow)], ids=["kernels", "torch"], scope="module", autouse=True
)
def kernels(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether there are kernels; it holds for every test of a module that imports it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "available", lambda: request.param)
        yield request.param
