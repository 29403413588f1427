"""The two ways of the CPU: by compiled kernels, and by torch alone, as where the extra ``cpu`` is missing.

The second one is for the second tier: quick tests reach torch's way by other dtypes, layouts and orders of the norm.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from evenkeel.clipping import cpu


@pytest.fixture(
    params=[True, pytest.param(False, marks=[pytest.mark.slow, pytest.mark.matrix])],
    ids=["kernels", "torch"],
    scope="module",
)
def either_way(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "available", lambda: request.param)
        yield
