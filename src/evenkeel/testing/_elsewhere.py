"""A process in which evenkeel is not installed, to load models in."""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["logits_elsewhere"]

_PROGRAM = """
import json, sys
sys.modules["evenkeel"] = None  # importing it fails, as where it is not installed
import torch, transformers
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)
for line in sys.stdin:
    asked = json.loads(line)
    try:
        model = getattr(transformers, asked["auto"]).from_pretrained(asked["folder"]).eval()
        given = {name: torch.tensor(rows) for name, rows in asked["inputs"].items()}
        with torch.no_grad():
            answer = {"logits": model(**given).logits.tolist()}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
"""


@cache
def _process() -> subprocess.Popen[str]:
    process = subprocess.Popen(  # noqa: S603  our own program
        [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(_end, process)
    return process


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    with process:  # waits, and closes the pipes
        pass


def logits_elsewhere(folder: Path, auto: str, inputs: dict[str, list[list[int]]]) -> Any:
    """Load a model by plain transformers in a process without evenkeel, and run it.

    Args:
        folder: where the model was saved.
        auto: the name of transformers' class that loads it.
        inputs: what it is given.

    Returns:
        Its logits, as nested lists.

    Raises:
        AssertionError: if it cannot be loaded or run there.
    """
    process = _process()
    asked, answered = process.stdin, process.stdout
    if asked is None or answered is None:
        raise AssertionError("the process has no pipes")
    asked.write(json.dumps({"folder": str(folder), "auto": auto, "inputs": inputs}) + "\n")
    asked.flush()
    line = answered.readline()
    answer = json.loads(line) if line else {"error": "the process ended"}
    if "error" in answer:
        raise AssertionError(f"where evenkeel is not installed the saved model fails: {answer['error']}")
    return answer["logits"]
