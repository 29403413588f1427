"""The small model and its data, and a folder for temporary files that a test can look into."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from tests.study._small import make_plan, small_data, small_model

__all__ = ["make_plan", "scratch", "small_data", "small_model"]


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where processes keep the scratch folders of their runs: one for each is there while it trains."""
    path = tmp_path / "scratch"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return path
