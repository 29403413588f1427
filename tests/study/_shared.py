"""What several processes do together in tests: functions that they import."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from evenkeel.study import RunResult, execute
from evenkeel.study.engines import Job


class Proof(TrainerCallback):
    """Sees that parameters, their gradients and the optimizer's moments are sharded, at every step."""

    def __init__(self) -> None:
        self.steps = 0
        self.largest = 0.0  # share of a weight that this process holds

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert dist.get_world_size() == args.world_size == int(os.environ["WORLD_SIZE"]) > 1
        assert dist.get_backend() == "gloo"
        for name, parameter in kwargs["model"].named_parameters():
            assert isinstance(parameter, DTensor), name
            assert parameter.grad is None or isinstance(parameter.grad, DTensor), name
            if parameter.shape[0] > 1:
                self.largest = max(self.largest, parameter.to_local().numel() / parameter.numel())

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        moments = [one["exp_avg"] for one in kwargs["optimizer"].state.values()]
        assert moments
        assert all(isinstance(moment, DTensor) for moment in moments)
        self.steps += 1


def proved(job: Job) -> tuple[RunResult, int, float]:
    """Execute a run, see that it is sharded, and return also how many steps that was seen, and the largest share."""
    proof = Proof()
    result = execute(job.spec, job.task, model=job.model, callbacks=[proof])
    return result, proof.steps, proof.largest


def joined(number: int) -> list[Any]:
    """Sum over ranks, and tell where this is."""
    dist.init_process_group("gloo")
    total = torch.tensor(number + dist.get_rank())
    dist.all_reduce(total)
    return [int(total), dist.get_rank(), dist.get_world_size(), torch.get_num_threads(), os.getppid()]


def fails(how: str, rank: int, folder: Path) -> None:
    """Let one rank fail while the others wait for it."""
    dist.init_process_group("gloo")
    (folder / f"pid-{os.getpid()}").touch()
    if dist.get_rank() != rank:
        dist.barrier()
    if how == "raise":
        raise ZeroDivisionError(f"rank {rank} was told to raise")
    if how == "no memory":
        raise MemoryError
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGKILL)


def waits(folder: Path) -> None:
    """Say that it is there, and stay."""
    (folder / f"pid-{os.getpid()}").touch()
    time.sleep(600)


def unsendable() -> Any:
    """Return what cannot be pickled."""
    return lambda: None


def with_processes(job: Job, processes: int) -> Job:
    """Return the same job for several processes."""
    return replace(job, spec=job.spec.model_copy(update={"processes": processes}))
