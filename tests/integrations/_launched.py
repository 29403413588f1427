"""Trainings by several processes, as torchrun starts them: ``_launched.py WAY FOLDER``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tests import _models
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaForSequenceClassification, PrinterCallback, Trainer, TrainingArguments

from evenkeel import components
from evenkeel.integrations.transformers import ComponentClip

ROWS, STEPS, MAX_NORM, RATE = _models.Rows(32), 4, 0.02, 1e-2


def arguments(folder: str, *, rows: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        learning_rate=RATE,
        adam_epsilon=1e-3,
        lr_scheduler_type="constant",
        max_steps=STEPS,
        per_device_train_batch_size=rows,
        train_sampling_strategy="sequential",
        max_grad_norm=0,
        average_tokens_across_devices=False,  # BERT takes the number of items and does not divide by it
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        ddp_backend="gloo" if "RANK" in os.environ else None,
    )


def whole(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: (one.full_tensor() if isinstance(one, DTensor) else one).detach().clone()
        for name, one in model.named_parameters()
    }


def train(model: nn.Module, folder: str, *, rows: int) -> dict[str, Any]:
    """Train by the Trainer; return the weights, the last norms, and what wrapped the model."""
    clip = ComponentClip(MAX_NORM)
    trainer = Trainer(model, arguments(folder, rows=rows), train_dataset=ROWS, callbacks=[clip])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    assert clip.last is not None
    return {
        "weights": whole(model),
        "norms": clip.last.to_dict(),
        "wrapper": type(trainer.model_wrapped).__name__,
        "kinds": sorted({type(one).__name__ for one in model.parameters()}),
        "log": [entry["grad_norm"] for entry in trainer.state.log_history if "loss" in entry],
    }


def by_accelerate(*, rows: int, fsdp: int = 2) -> dict[str, Any]:
    """Train in a loop beside an Accelerator, with FSDP of that version where there are several processes."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.utils import DistributedType

    from evenkeel.integrations.accelerate import clip_grad_norm_

    accelerator = Accelerator(cpu=True)
    # On a CPU Accelerate takes MULTI_CPU whatever was asked for; its FSDP works all the same.
    if dist.is_initialized():
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=fsdp,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["BertLayer"],
            **{"use_orig_params": True} if fsdp == 1 else {},
        )
        accelerator.state.distributed_type = DistributedType.FSDP
        assert accelerator.is_fsdp2 is (fsdp == 2)
    model: Any = _models.bert()
    if fsdp == 1:
        if dist.is_initialized():  # by hand, which Accelerate accepts: it would name a device that torch refuses
            model = FullyShardedDataParallel(
                model,
                auto_wrap_policy=ModuleWrapPolicy({type(model.bert.encoder.layer[0])}),
                use_orig_params=True,
                device_id=torch.device("cpu"),
            )
        model = accelerator.prepare(model)
        optimizer = accelerator.prepare(torch.optim.AdamW(model.parameters(), lr=RATE, eps=1e-3))
    else:
        model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=RATE, eps=1e-3))
    parts = components(model)
    rank = accelerator.process_index
    for step in range(STEPS):
        start = step * rows * accelerator.num_processes + rank * rows
        ids = ROWS.ids[start : start + rows]
        accelerator.backward(model(input_ids=ids, labels=ids[:, 0] % 2).loss)
        result = clip_grad_norm_(accelerator, parts, MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
    assert result is not None
    return {
        "weights": whole(model) if fsdp == 2 else {},
        "norms": result.to_dict(),
        "wrapper": type(model).__name__,
        "kinds": sorted({type(one).__name__ for one in model.parameters()}),
    }


def by_lightning(folder: str, *, rows: int) -> dict[str, Any]:
    """Train by Lightning, with FSDP2 where there are several processes."""
    import lightning
    from lightning.pytorch.strategies import ModelParallelStrategy
    from torch.distributed.fsdp import fully_shard

    from evenkeel.integrations.lightning import ComponentClip as ForLightning

    several = "RANK" in os.environ

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = _models.bert()

        def configure_model(self) -> None:
            if several:
                for block in self.model.bert.encoder.layer:
                    fully_shard(block, mesh=self.device_mesh["data_parallel"])
                fully_shard(self.model, mesh=self.device_mesh["data_parallel"])

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            return nn.functional.cross_entropy(self.model(input_ids=batch["input_ids"]).logits, batch["labels"])

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=RATE, eps=1e-3)

    module, clip = Module(), ForLightning(MAX_NORM)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2 if several else 1,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1) if several else "auto",
        callbacks=[clip],
        max_steps=STEPS,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    number, rank = (2, int(os.environ["RANK"])) if several else (1, 0)
    sampler = torch.utils.data.DistributedSampler(ROWS, number, rank, shuffle=False)  # Lightning's own shuffles
    trainer.fit(module, torch.utils.data.DataLoader(ROWS, batch_size=rows, sampler=sampler))
    return {
        "weights": whole(module.model),
        "norms": clip.last[0].to_dict(),
        "wrapper": type(trainer.strategy).__name__,
        "kinds": sorted({type(one).__name__ for one in module.parameters()}),
    }


def llama() -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    return _models.llama()


def loaded(folder: str) -> nn.Module:
    """A model that ``from_pretrained`` shards by FSDP2."""
    from transformers.distributed import DistributedConfig

    return LlamaForSequenceClassification.from_pretrained(folder, distributed_config=DistributedConfig(fsdp_size=2))


def main(way: str, folder: Path) -> None:
    """Train in one way, and keep what every rank found."""
    share = 4
    if way == "ddp":
        found = train(_models.bert(), str(folder), rows=share)
        assert found["wrapper"] == DistributedDataParallel.__name__
    elif way == "fsdp2":
        found = train(loaded(str(folder / "model")), str(folder), rows=share)
    elif way.startswith("accelerate"):
        found = by_accelerate(rows=share, fsdp=1 if way.endswith("fsdp1") else 2)
    else:
        found = by_lightning(str(folder), rows=share)
    torch.save(found, folder / f"{way}-{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
