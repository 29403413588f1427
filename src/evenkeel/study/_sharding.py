"""A run that several processes share: each holds its part of every weight (FSDP2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import Trainer

from evenkeel.errors import EngineError
from evenkeel.partition import blocks
from evenkeel.study._meter import Spent

__all__ = ["keep_sharding", "save_whole", "shard", "spent_together"]


def shard(model: nn.Module, device: torch.device, processes: int) -> None:
    """Share a model's parameters out among the processes, layer by layer; what is no layer goes together.

    Args:
        model: the model, the same one in every process; it goes to the device part by part.
        device: this process's.
        processes: how many there are to be.

    Raises:
        EngineError: if there are not so many processes, or not so many devices.
    """
    found = dist.get_world_size() if dist.is_initialized() else 1
    if found != processes:
        raise EngineError(
            f"the run is one of {processes} processes, and this is one of {found}; let an engine execute it, or "
            "evenkeel.study.engines.execute_job"
        )
    if device.type == "cuda" and torch.cuda.device_count() < processes:
        raise EngineError(
            f"the run is one of {processes} processes with a GPU each, and this machine has {torch.cuda.device_count()}"
            "; ask for fewer by resources.processes_per_run, or for none by gpus: 0"
        )
    if device.type not in ("cpu", "cuda"):
        raise EngineError(
            f"the run is one of {processes} processes, which cannot share it on the device '{device.type}'; leave "
            "resources.processes_per_run out"
        )
    mesh = init_device_mesh(device.type, (processes,))
    for block in blocks(model):
        if not isinstance(block.module, nn.ModuleList | nn.ModuleDict):  # these run nothing by themselves
            fully_shard(block.module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def keep_sharding(trainer: Trainer) -> None:
    """Let a Trainer take its sharded model as it is: accelerate prepares it here, without wrapping it, and only once.

    Args:
        trainer: the Trainer, before training.
    """
    trainer.accelerator.prepare_model(trainer.model, device_placement=False, evaluation_mode=True)


def save_whole(trainer: Trainer, folder: Path) -> None:
    """Save the whole model and its tokenizer, as a Trainer of a single process does; called in every process.

    Args:
        trainer: the Trainer.
        folder: where to.
    """
    model: Any = trainer.model
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)  # the first process gets all, the others nothing
    weights = get_model_state_dict(model, options=options)
    if dist.get_rank() == 0:
        model.save_pretrained(folder, state_dict=weights)
        cast(Any, trainer.processing_class).save_pretrained(folder)
    dist.barrier()


def spent_together(spent: Spent) -> Spent:
    """Return what all processes took.

    Args:
        spent: what this one took.

    Returns:
        The longest time; the sum of the time of cores, and of the machine's memory; the most on one device.
    """
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, spent)
    parts = cast(list[Spent], every)
    places = list(dict.fromkeys(place for part in parts for place in part.peak_memory))
    peaks = {place: [part.peak_memory.get(place, 0) for part in parts] for place in places}
    return Spent(
        wall_seconds=max(part.wall_seconds for part in parts),
        cpu_seconds=sum(part.cpu_seconds for part in parts),
        peak_memory={place: sum(peak) if place == "host" else max(peak) for place, peak in peaks.items()},
    )
