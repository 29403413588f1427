"""A training by a DeepSpeed engine on two CPU ranks, as torchrun starts it: ``_engine.py STAGE FOLDER``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
import torch.distributed as dist
from tests import _models

from evenkeel import components

ROWS, STEPS, MAX_NORM, RATE, ACCUMULATED = _models.Rows(32), 3, 0.02, 0.1, 2


def micro_batches(step: int, rank: int, ranks: int) -> list[torch.Tensor]:
    """The rows of each micro-batch of a step on a rank: together they are the same on any number of ranks."""
    size = 4 // ranks
    starts = [(step * ACCUMULATED + micro) * 4 + rank * size for micro in range(ACCUMULATED)]
    return [ROWS.ids[start : start + size] for start in starts]


def main(stage: int, folder: Path) -> None:
    import deepspeed

    from evenkeel.integrations.deepspeed import clip_grad_norm_

    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    model = _models.bert()
    parts = components(model)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=RATE),
        config={
            "train_micro_batch_size_per_gpu": 2,
            "gradient_accumulation_steps": ACCUMULATED,
            "gradient_clipping": 0.0,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        },
    )
    norms: list[Any] = []
    for step in range(STEPS):
        for ids in micro_batches(step, dist.get_rank(), dist.get_world_size()):
            engine.backward(engine(input_ids=ids, labels=ids[:, 0] % 2).loss)
            result = clip_grad_norm_(engine, parts, MAX_NORM)
            norms.append(None if result is None else result.to_dict())
            engine.step()
    whole = {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=stage == 3):
            whole[name] = parameter.detach().clone()
    kind = type(engine.optimizer).__name__
    torch.save({"weights": whole, "norms": norms, "optimizer": kind}, folder / f"{dist.get_rank()}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
