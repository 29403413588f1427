"""The small model and its data."""

from __future__ import annotations

from tests.study._small import make_plan, small_data, small_model

__all__ = ["make_plan", "small_data", "small_model"]
