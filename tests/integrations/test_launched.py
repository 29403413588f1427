"""Two processes that torchrun starts, under DDP and FSDP2: the norms and weights of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import _models
from tests.integrations import _launched

ROOT = Path(__file__).parents[2]


def launch(way: str, folder: Path) -> list[dict[str, Any]]:
    # `accelerate launch --cpu` starts one process, however many one asks for; torchrun is what it calls for GPUs.
    command = [
        *(sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"),
        *(str(Path(_launched.__file__)), way, str(folder)),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"{way}-{rank}.pt") for rank in range(2)]


def assert_alike(found: list[dict[str, Any]], alone: dict[str, Any], tolerance: float = 2e-4) -> None:
    for one in found:
        assert one["norms"] == pytest.approx(alone["norms"], rel=2e-3, abs=1e-6)
        assert list(one["weights"]) == list(alone["weights"])
        for name, weights in one["weights"].items():
            torch.testing.assert_close(weights, alone["weights"][name], rtol=0, atol=tolerance)


@pytest.mark.slow
def test_under_ddp(tmp_path: Path) -> None:
    found = launch("ddp", tmp_path)
    assert {one["wrapper"] for one in found} == {"DistributedDataParallel"}
    alone = _launched.train(_models.bert(), str(tmp_path), rows=8)
    assert_alike(found, alone)
    for one in found:
        assert one["log"] == pytest.approx(alone["log"], rel=1e-3)


@pytest.mark.slow
def test_under_fsdp2_as_transformers_loads_it(tmp_path: Path) -> None:
    _launched.llama().save_pretrained(tmp_path / "model")
    found = launch("fsdp2", tmp_path)
    assert all("DTensor" in " ".join(one["kinds"]) for one in found)  # parameters are sharded
    alone = _launched.train(_launched.llama(), str(tmp_path), rows=8)
    assert_alike(found, alone)


@pytest.mark.slow
def test_under_fsdp2_as_accelerate_prepares_it(tmp_path: Path) -> None:
    found = launch("accelerate", tmp_path)
    assert all(one["kinds"] == ["DTensor"] for one in found)
    assert {one["wrapper"] for one in found} == {"FSDPBertForSequenceClassification"}
    assert_alike(found, _launched.by_accelerate(rows=8))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning's advice
def test_under_fsdp2_as_lightning_sets_it_up(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="the extra lightning is not installed")
    found = launch("lightning", tmp_path)
    assert all("DTensor" in " ".join(one["kinds"]) for one in found)
    assert {one["wrapper"] for one in found} == {"ModelParallelStrategy"}
    assert_alike(found, _launched.by_lightning(str(tmp_path), rows=8))


@pytest.mark.slow
def test_under_fsdp1_as_accelerate_prepares_it(tmp_path: Path) -> None:
    found = launch("accelerate-fsdp1", tmp_path)
    assert {one["wrapper"] for one in found} == {"FullyShardedDataParallel"}
    alone = _launched.by_accelerate(rows=8)
    for one in found:  # the norms of the last step say that all weights before it were the same
        assert one["norms"] == pytest.approx(alone["norms"], rel=2e-3, abs=1e-6)
