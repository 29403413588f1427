"""A sharded training loop, as torchtitan writes them: a device mesh, ``fully_shard`` for each block, one clipping call.

Run it: ``torchrun --nproc-per-node 2 examples/fsdp2_loop.py``. Without GPUs the processes talk by gloo.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import evenkeel as ek
from evenkeel.models import find_model, load_model, load_tokenizer

TEXTS = ["the cat sleeps", "the cat sleep", "a dog runs", "a dog run", "the birds sing", "the birds sings"] * 8
LABELS = torch.tensor([1, 0] * (len(TEXTS) // 2))
ROWS = 4  # on each rank


def main() -> None:
    """Train on every rank, and say on the first one what was clipped."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=4, help="optimizer steps")
    steps = options.parse_args().steps

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh(device.type, (ranks,), mesh_dim_names=("shard",))

    source = find_model("tiny")
    model = load_model(source, ["no", "yes"], seed=0).to(device)
    for block in model.bert.encoder.layer:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    parts = ek.components(model)  # after sharding: these are the parameters that train
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    tokens = load_tokenizer(source)(TEXTS, padding=True, return_tensors="pt").to(device)

    model.train()
    for step in range(steps):
        rows = (torch.arange(ROWS) + (step * ranks + rank) * ROWS) % len(TEXTS)
        inputs = {name: values[rows] for name, values in tokens.items()}
        model(**inputs, labels=LABELS[rows].to(device)).loss.backward()  # reduces and scatters
        result = ek.clip_grad_norm_(parts, {"embedding": 0.01, "*": 0.05})  # on every rank: one all-reduce
        optimizer.step()
        optimizer.zero_grad()
        if rank == 0:
            print(f"step {step}: norm {result.total_norm.item():.4f}, clipped {int((result.coefficients < 1).sum())}")
    if rank == 0:
        sharded = sum(isinstance(parameter, DTensor) for parameter in model.parameters())
        print(f"{sharded} of {len(list(model.parameters()))} parameters are sharded over {ranks} ranks")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
