"""What the pages on frameworks show can be pasted and runs."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

PAGES = Path(__file__).parents[2] / "docs" / "integrations"
NEEDED = {"lightning": "lightning", "optax": "optax", "peft": "peft"}
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMES = sorted(page.stem for page in PAGES.glob("*.md") if BLOCK.search(page.read_text(encoding="utf-8")))


def test_every_framework_has_a_page() -> None:
    overview = (PAGES / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\(([a-z]+)\.md\)", overview))
    assert linked == {page.stem for page in PAGES.glob("*.md")} - {"README"}
    assert {"transformers", "accelerate", "lightning", "peft", "loops", "optax"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:.*does not have many workers")  # Lightning's advice about speed
@pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec")  # of Lightning's own code
@pytest.mark.filterwarnings("ignore:.*enable_nested_tensor")  # torch's, about its own layer
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT asks for it
@pytest.mark.filterwarnings("ignore:'pin_memory' argument")  # torch's, where there is no GPU
@pytest.mark.filterwarnings("ignore:.*litlogger")  # Lightning's advice of another logger
@pytest.mark.filterwarnings("ignore:Starting from v1.9.0")  # and of the one that it takes
def test_the_lines_run_when_pasted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in NEEDED and importlib.util.find_spec(NEEDED[name]) is None:
        pytest.skip(f"{NEEDED[name]} is not installed: the extra that the page names")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    namespace: dict[str, Any] = {"__name__": "__pasted__"}
    blocks = BLOCK.findall((PAGES / f"{name}.md").read_text(encoding="utf-8"))
    for block in blocks:
        assert len([line for line in block.splitlines() if line.strip()]) <= 16  # ten lines or so
        exec(compile(block, f"{name}.md", "exec"), namespace)  # noqa: S102  our own page
