"""Both engines pass the suite for engines. Every test starts processes, which takes seconds."""

from __future__ import annotations

import pytest

from evenkeel.study.engines import Engine, LocalEngine, RayEngine, Work
from evenkeel.testing import EngineContract

pytestmark = [pytest.mark.slow, pytest.mark.matrix]  # processes start and die by the dozen


class TestLocalEngine(EngineContract):
    def make(self, work: Work, *, at_a_time: int) -> Engine:
        return LocalEngine(workers=at_a_time, work=work)


class TestRayEngine(EngineContract):
    """Each test starts Ray and stops it."""

    def make(self, work: Work, *, at_a_time: int) -> Engine:
        return RayEngine(workers=at_a_time, work=work)
