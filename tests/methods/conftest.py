"""Training arguments as for the integrations; and which tests of the contract suite belong to the first tier."""

from __future__ import annotations

import pytest
from tests.integrations.conftest import arguments

from evenkeel.testing import MethodContract

__all__ = ["arguments"]

_FIRST_TIER = {"test_is_a_configuration", "test_core", "test_neutral_setting_equals_its_twin"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        owner = getattr(item, "cls", None)
        of_contract = isinstance(owner, type) and issubclass(owner, MethodContract)
        if of_contract and hasattr(MethodContract, item.originalname) and item.originalname not in _FIRST_TIER:  # type: ignore[attr-defined]
            item.add_marker(pytest.mark.slow)
