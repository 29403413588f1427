from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from evenkeel.testing._processes import alive

PARENT = """
import multiprocessing, os, time
from evenkeel._process import run_below
if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=run_below, args=(os.getpid(), "time", "sleep", 600.0))
    child.start()
    print(child.pid, flush=True)
    time.sleep(600)
"""


def test_a_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT, encoding="utf-8")
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.kill()
    deadline = time.monotonic() + 30
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)


def test_it_watches_before_anything_heavy_is_loaded() -> None:
    code = "import sys, evenkeel._process; print({'torch', 'numpy', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
