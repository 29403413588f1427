"""The scripts in ``examples/`` run, and do what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = {"fsdp2_loop", "lora_trainer", "plain_loop"}


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *command],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == NAMES


@pytest.mark.slow
def test_a_plain_loop_goes_on_where_it_was(tmp_path: Path) -> None:
    script = str(EXAMPLES / "plain_loop.py")
    whole = run(tmp_path, script, "--steps", "6", "--checkpoint", "whole.pt")
    run(tmp_path, script, "--steps", "3", "--checkpoint", "half.pt")
    rest = run(tmp_path, script, "--steps", "6", "--checkpoint", "half.pt")
    steps = [line for line in whole.splitlines() if line.startswith("step")]
    assert len(steps) == 6
    assert [line.split(":")[0] for line in rest.splitlines() if line.startswith("step")] == [
        "step 3",
        "step 4",
        "step 5",
    ]
    assert "most often clipped: bert" in whole


@pytest.mark.slow
def test_a_loss_scale_changes_nothing(tmp_path: Path) -> None:
    script = str(EXAMPLES / "plain_loop.py")
    plain = run(tmp_path, script, "--steps", "2", "--checkpoint", "a.pt").splitlines()[:2]
    scaled = run(tmp_path, script, "--steps", "2", "--loss-scale", "--checkpoint", "b.pt").splitlines()[:2]
    assert [line.rpartition(" ")[0] for line in scaled] == [line.rpartition(" ")[0] for line in plain]
    numbers = [[float(line.rpartition(" ")[2]) for line in lines] for lines in (plain, scaled)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.2)  # dropout is drawn alike; rounding differs


@pytest.mark.slow
def test_a_sharded_loop_clips_sharded_parameters(tmp_path: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    told = run(tmp_path, *torchrun, str(EXAMPLES / "fsdp2_loop.py"), "--steps", "2")
    assert "step 1: norm" in told
    sharded, _, every = told.partition(" parameters are sharded over 2 ranks")[0].splitlines()[-1].partition(" of ")
    assert int(sharded) == int(every) > 90


@pytest.mark.slow
def test_lora_is_merged_in_the_end(tmp_path: Path) -> None:
    told = run(tmp_path, str(EXAMPLES / "lora_trainer.py"), "--out", "merged")
    assert "query.lora_A" in told
    assert (tmp_path / "merged" / "model.safetensors").exists()
