"""What every test and every doctest needs before anything heavy is imported."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest-xdist fills the cores; threads on top of it would only wait

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit the folder of the process that started them
    os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="evenkeel-hf-")  # nobody's own cache can help or hurt a test
    atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(autouse=True)
def _names_in_doctests(request: pytest.FixtureRequest) -> None:
    if isinstance(request.node, pytest.DoctestItem):
        import evenkeel

        namespace: dict[str, Any] = request.getfixturevalue("doctest_namespace")
        namespace["ek"] = evenkeel
