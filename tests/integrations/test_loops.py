"""What docs/integrations/loops.md says of torchtitan and torchtune, against them, where they are installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import evenkeel as ek

ROOT = Path(__file__).parents[2]
# Of torchtune's modules, whose names mean something else elsewhere.
ROLES = {
    "MultiHeadAttention": {"output_proj": "attention_output"},
    "FeedForward": {"w1": "ffn_gate", "w2": "ffn_out", "w3": "ffn_in"},
}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torchtitan") is None, reason="torchtitan is not installed")
def test_torchtitans_clipping_is_ours_of_all_as_one_component() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"),
            str(Path(__file__).with_name("_titan.py")),
        ],
        cwd=ROOT,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
        | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "both alike" in done.stdout


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torchtune and torchao, which are older than torch
def test_torchtunes_models_have_components_and_their_recipes_clipping_is_ours_of_all_as_one() -> None:
    pytest.importorskip("torchtune", reason="torchtune is not installed", exc_type=ImportError)
    from torchtune.models.llama3 import llama3

    def with_gradients() -> torch.nn.Module:
        torch.manual_seed(0)
        sizes = {"num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "embed_dim": 16, "max_seq_len": 16}
        model: torch.nn.Module = llama3(vocab_size=32, **sizes)
        model(torch.arange(12).reshape(2, 6)).square().mean().backward()
        return model

    ours, theirs = with_gradients(), with_gradients()
    parts = ek.components(ours, roles=ROLES)
    attention, network = {"query", "key", "value", "attention_output"}, {"ffn_gate", "ffn_in", "ffn_out"}
    assert {part.role for part in parts if part.layer == 1} == {*attention, *network, "norm"}
    assert {part.role for part in parts if part.layer is None} == {"embedding", "norm", "head"}
    norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm=0.01)  # the line of the recipes
    result = ek.clip_grad_norm_(ek.components(ours, by="global"), 0.01)
    assert result.total_norm.item() == pytest.approx(norm.item(), rel=1e-5)
    assert norm > 0.01
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-9)
    assert len(parts) == len(list(ours.parameters()))
