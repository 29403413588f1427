"""What tests share: how Hypothesis searches, where real data lies, and when ranks end."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from tests import _ranks

# The same examples every time and no clock: a red test is red for everybody. "search" looks for new examples.
settings.register_profile(
    "repeat", deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("search", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))


# Rooms whose tests are matrices: the same lines again on other models, dtypes, layouts. Traced they take twice as long.
_HERE = Path(__file__).parent
_MATRICES = tuple(_HERE / room for room in ("clipping", "integrations", "measure", "optim", "partition"))
_EXIT = os._exit  # coverage's, where there is coverage


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Measure the coverage of the first case of such a test, and not that of the others; they are run all the same."""
    seen = set()
    for item in items:
        if not item.path.is_relative_to(_HERE) or item.get_closest_marker("slow"):
            continue
        test = item.nodeid.partition("[")[0]
        if test in seen and any(item.path.is_relative_to(room) for room in _MATRICES):
            item.add_marker(pytest.mark.no_cover)
        seen.add(test)


@pytest.fixture(scope="session")
def glue_dir() -> Path:
    """The folder that holds ``rte/``, ``mrpc/`` and ``cola/`` as tab-separated files."""
    folder = os.environ.get("EVENKEEL_GLUE_DIR")
    if not folder:
        pytest.skip("EVENKEEL_GLUE_DIR is not set: it names the folder with the GLUE files")
    path = Path(folder)
    if not (path / "rte").is_dir():
        pytest.fail(f"EVENKEEL_GLUE_DIR is {folder!r}, but there is no folder rte in it")
    return path


@pytest.fixture(autouse=True, scope="session")
def _imports_are_no_garbage() -> Iterator[None]:
    """Every training of accelerate collects garbage, and would look each time at all that was ever imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _later_imports_are_none_either(_imports_are_no_garbage: None) -> Iterator[None]:
    """Much is imported by what is tested, when it is first needed."""
    before = len(sys.modules)
    yield
    if len(sys.modules) > before:
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _ranks_end_with_their_file() -> Iterator[None]:
    """Other tests wait until no process is left of the test before."""
    yield
    _ranks.close()


@pytest.fixture(autouse=True)
def _what_is_not_measured_has_processes_that_are_not(request: pytest.FixtureRequest) -> Iterator[None]:
    """Also let no process save its coverage once for every time that measuring went on in the one it was forked from.

    coverage puts another ``os._exit`` around the one that it finds whenever it starts, which is after each such test.
    """
    if request.node.get_closest_marker("no_cover"):
        os.environ.pop("COVERAGE_PROCESS_CONFIG", None)  # measuring, when it goes on, puts it there again
    yield
    os._exit = _EXIT


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of one rank on the CPU, for what needs torch.distributed."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
