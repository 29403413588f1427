"""What optimizers with clipping inside cost beside torch's, on a CPU: time of updates and of steps, and memory.

    python benchmarks/optim.py update [--repeat 9]      # AdamW's update alone: BERT-large, and a small model
    python benchmarks/optim.py step [--repeat 5]        # whole training steps of BERT-base, 16 x 128, in a Trainer
    python benchmarks/optim.py small-step [--repeat 5]  # the same with 1 x 16, where what is not the model's is seen
    python benchmarks/optim.py memory                   # gradients held at once, and the process's peak

Ways are timed one after the other, round by round, so that whatever else the machine does befalls all of them. A ratio
is the median over the rounds of (this way / the first way in the same round), with the quartiles in brackets. Memory is
measured with a process for each way: the largest sum of gradients that exist at one time, looked at whenever one comes,
and how far the resident size rises above model and optimizer state.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, BertConfig, LlamaConfig, LlamaForCausalLM, Trainer

import evenkeel as ek
from evenkeel.integrations.transformers import ComponentClip, MethodTrainer

sys.path.insert(0, str(Path(__file__).parent))
from clipping import EVERYTHING, NOTHING, Timing, bert_large, fill, refill, small, timed, without_kernels

MODELS: dict[str, Callable[[], nn.Module]] = {"BERT-large, 335M entries": bert_large, "small BERT, 2M entries": small}


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print a table in Markdown, and what it was measured with."""
    for row in (header, ("---",) * len(header), *rows):
        print("| " + " | ".join(row) + " |")
    print(
        f"\ntorch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}, {torch.get_num_threads()} threads on {os.cpu_count()} cores\n"
    )


# --- the update alone


def updates(model: nn.Module) -> dict[str, Callable[[], object]]:
    """Return the ways of updating ``model``; all share one state of AdamW, which the first begins."""
    parameters, parts = list(model.parameters()), ek.components(model)
    plain = torch.optim.AdamW(parameters, lr=1e-6, fused=True)

    def ours(max_norm: Any, **options: Any) -> Callable[[], object]:
        optimizer = ek.optim.ClippedAdamW(parts, lr=1e-6, max_norm=max_norm, **options)
        optimizer.state = plain.state
        return optimizer.step

    def torch_clipping() -> None:
        nn.utils.clip_grad_norm_(parameters, EVERYTHING, foreach=True)
        plain.step()

    def two_passes() -> None:
        ek.clip_grad_norm_(parts, EVERYTHING)
        plain.step()

    return {
        "fused AdamW, no clipping": plain.step,
        "torch's clipping + fused AdamW": torch_clipping,
        "evenkeel's clipping + fused AdamW": two_passes,
        "ClippedAdamW, nothing clipped": ours(NOTHING),
        "ClippedAdamW, everything clipped": ours(EVERYTHING),
        "ClippedAdamW, Ema": ours(ek.thresholds.Ema(warmup=0)),
        "the same without the extra cpu": without_kernels(ours(EVERYTHING)),
    }


def measure_updates(repeat: int) -> None:
    """Time all ways of updating, ``repeat`` rounds after two that do not count."""
    rows = []
    for name, make in MODELS.items():
        model = make()
        source, ways = fill(model), updates(model)
        before = functools.partial(refill, model, source)
        for way, timing in timed(ways, repeat, before).items():
            rows.append((name, way, *timing.row()))
            name = ""
    table(("model", "way", "ms", "ratio to fused AdamW (quartiles)"), rows)


# --- whole steps


class Batches(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Random rows of so many tokens."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return 16 * 64

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        return {
            "input_ids": torch.randint(5, 30000, (self.tokens,), generator=generator),
            "labels": torch.tensor(index % 2),
        }


def step_times(make: Callable[..., Trainer], rows: int, tokens: int, steps: int, **options: Any) -> list[float]:
    """Train for some steps and return the seconds of each; the first two do not count."""
    model = AutoModelForSequenceClassification.from_config(BertConfig())
    moments: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            moments.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=rows,
            max_steps=steps + 2,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **options,
        )
        trainer = make(model, arguments, train_dataset=Batches(tokens))
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.add_callback(Clock())
        trainer.train()
    return [after - before for before, after in itertools.pairwise(moments[1:])]


def measure_steps(repeat: int, rows: int, tokens: int, steps: int) -> None:
    """Time whole steps, one training after the other for each round of ways."""

    def methods(**more: Any) -> Callable[..., Trainer]:
        return lambda model, args, **kw: MethodTrainer(model, args, methods=["component-clip"], **more, **kw)

    ways: dict[str, tuple[Callable[..., Trainer], dict[str, Any]]] = {
        "Trainer, max_grad_norm=1.0": (Trainer, {"max_grad_norm": 1.0}),
        "Trainer, max_grad_norm=0": (Trainer, {"max_grad_norm": 0.0}),
        "Trainer with ComponentClip": (
            lambda model, args, **kw: Trainer(model, args, callbacks=[ComponentClip(0.05)], **kw),
            {"max_grad_norm": 0.0},
        ),
        "MethodTrainer": (methods(), {}),
        'MethodTrainer, optimizer="clipped-adamw"': (methods(optimizer="clipped-adamw"), {}),
        "MethodTrainer, in_backward=True": (methods(in_backward=True), {}),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeat):
        for name, (make, options) in ways.items():
            seconds[name].append(statistics.median(step_times(make, rows, tokens, steps, **options)))
    first = seconds[next(iter(ways))]
    found = []
    for name, taken in seconds.items():
        ratios = [mine / theirs for mine, theirs in zip(taken, first, strict=True)]
        found.append((name, *Timing([1000 * one for one in taken], ratios).row()))
    table(("way", "ms a step", "ratio to the first (quartiles)"), found)


# --- memory


def llama_1b() -> nn.Module:
    """Build a Llama of 1.1 billion parameters, in bfloat16."""
    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        vocab_size=32000,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


LARGE: dict[str, Callable[[], nn.Module]] = {
    "BERT-large, float32": bert_large,
    "Llama of 1.1B, bfloat16": llama_1b,
}


def memory_of(name: str, way: str) -> tuple[float, float, float]:
    """Train two steps; return MiB of gradients held at once, of the largest parameter, and of the rise at the peak."""
    torch.manual_seed(0)
    model = LARGE[name]()
    parameters = list(model.parameters())

    def make(tensors: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(tensors, lr=1e-5, foreach=False)

    stepping = way == "in backward"
    optimizer: Any = ek.optim.step_in_backward(model, make, max_norm=0.05) if stepping else make(parameters)
    held = 0

    def look(_: Tensor) -> None:
        nonlocal held
        held = max(held, sum(p.grad.numel() * p.grad.itemsize for p in parameters if p.grad is not None))

    for parameter in parameters:  # autograd calls hooks in the order in which they were set: behind those that step
        parameter.register_post_accumulate_grad_hook(look)
    arrivals = [parameter.register_hook(lambda grad, p=parameter: count(grad, p)) for parameter in parameters]
    at_once = 0

    def count(grad: Tensor, own: Tensor) -> None:
        nonlocal at_once
        others = sum(p.grad.numel() * p.grad.itemsize for p in parameters if p.grad is not None and p is not own)
        at_once = max(at_once, others + grad.numel() * grad.itemsize)

    parts = ek.components(model)
    for step in range(2):
        ids = torch.randint(5, 30000, (1, 16))
        labels = ids if "Llama" in name else torch.tensor([0])
        loss = model(input_ids=ids, labels=labels).loss
        if step == 1:
            before = resident()
            reset_peak()
        loss.backward()
        if not stepping:
            ek.clip_grad_norm_(parts, 0.05)
            optimizer.step()
            optimizer.zero_grad()
    for arrival in arrivals:
        arrival.remove()
    mib = 2**20
    largest = max(p.numel() * p.itemsize for p in parameters)
    return max(held, at_once) / mib, largest / mib, (peak() - before) / mib


def resident() -> int:
    """Return the bytes of this process that are in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def reset_peak() -> None:
    """Let the peak begin anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Return the largest resident size since :func:`reset_peak`, bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def measure_memory() -> None:
    """Measure each way in a process of its own."""
    rows = []
    for name in LARGE:
        for way in ("backward, clip, step", "in backward"):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                held, largest, rise = pool.apply(memory_of, (name, way))
            rows.append((name, way, f"{held:.0f}", f"{held / largest:.2f}", f"{rise:.0f}"))
    table(("model", "way", "gradients at once, MiB", "in largest parameters", "peak over the forward pass, MiB"), rows)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["update", "step", "small-step", "memory"])
    parser.add_argument("--repeat", type=int, default=5, help="rounds")
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    if arguments.what == "update":
        measure_updates(arguments.repeat)
    elif arguments.what == "step":
        measure_steps(arguments.repeat, rows=16, tokens=128, steps=5)
    elif arguments.what == "small-step":
        measure_steps(arguments.repeat, rows=1, tokens=16, steps=12)
    else:
        measure_memory()


if __name__ == "__main__":
    main()
