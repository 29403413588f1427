"""Methods under DDP: two processes that share a batch give the weights of one that has it all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.integrations import _ddp
from torch import Tensor

# What draws nothing in a micro-batch must give the same weights; what does must at least keep the ranks together.
# gradient-stabilizer is in neither: it makes whole steps of gradients of keys' biases, and these are rounding alone.
ALIKE = (
    *("full", "component-clip", "adagc:warmup=0", "llrd", "reinit", "noisytune", "decay-to-pretrained:strength=1.0"),
    *("child-tuning-f", "child-tuning-d", "bitfit", "stable-adamw", "sam", "swa:start=0.5", "ema:decay=0.5"),
    *("lamb", "spamp", "prodigy", "schedule-free", "component-update-clip"),
)
DRAWING = ("r-drop", "mixout:p=0.5", "hype:scale=0.1", "lnsr", "r3f", "smart")
ACCUMULATED = ("full", "sam")


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("ddp")
    jobs = [(method, 1) for method in (*ALIKE, *DRAWING)] + [(method, 2) for method in ACCUMULATED]
    (folder / "methods.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [*command, str(Path(_ddp.__file__)), str(folder)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("method", ALIKE)
def test_two_processes_give_the_weights_of_one(method: str, by_two: list[dict[str, Tensor]], tmp_path: Path) -> None:
    alone = _ddp.train(method, rows=8, accumulated=1, folder=str(tmp_path))
    for found in by_two:
        torch.testing.assert_close(found[f"{method} x 1"], alone, rtol=0, atol=2e-4)
    assert torch.equal(by_two[0][f"{method} x 1"], by_two[1][f"{method} x 1"])


@pytest.mark.slow
@pytest.mark.parametrize("method", ACCUMULATED)
def test_they_do_with_accumulated_micro_batches(method: str, by_two: list[dict[str, Tensor]], tmp_path: Path) -> None:
    alone = _ddp.train(method, rows=8, accumulated=1, folder=str(tmp_path))
    for found in by_two:
        torch.testing.assert_close(found[f"{method} x 2"], alone, rtol=0, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", DRAWING)
def test_what_draws_for_each_rank_keeps_the_ranks_together(method: str, by_two: list[dict[str, Tensor]]) -> None:
    first, second = (found[f"{method} x 1"] for found in by_two)
    assert torch.equal(first, second)
    assert not torch.equal(first, by_two[0]["full x 1"])
