"""Training arguments as for the integrations; and which tests of the contract suite belong to the first tier."""

from __future__ import annotations

import pytest
from tests.integrations.conftest import arguments

from evenkeel.testing import MethodContract

__all__ = ["arguments"]

_FIRST_TIER = {"test_is_a_configuration", "test_core", "test_neutral_setting_equals_its_twin"}
# What differs most from BERT, whose tests are always run; every other architecture is left to the whole second tier.
_ALWAYS = {"test_on_albert"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        owner, name = getattr(item, "cls", None), getattr(item, "originalname", "")
        if not (isinstance(owner, type) and issubclass(owner, MethodContract) and hasattr(MethodContract, name)):
            continue
        if name not in _FIRST_TIER:
            item.add_marker(pytest.mark.slow)
        item.add_marker(pytest.mark.no_cover)  # it would take twice as long, for lines that other tests go through
        if name.startswith("test_on_") and name not in _ALWAYS:
            item.add_marker(pytest.mark.matrix)
