"""What every fine-tuning method costs beside ``full``: time of a step, and memory at its peak.

    python benchmarks/methods.py [--repeat 5] [--methods mixout,sam] [--rows 16] [--tokens 64]

The model is a BERT of MiniLM's shape (6 layers, 384 wide). All methods take their turn in each round, one training
after the other in this process, so that whatever else the machine does befalls all of them. Time is the median step of
a training, without its first two; what happens once, before the first step, is told apart. A ratio is the median over
the rounds of (this method / full in the same round), with the quartiles in brackets. Memory is how far the process's
resident size (on a GPU: what torch allocated there) rises at its peak above what it was with the model loaded, as a
ratio to the same of ``full``; what is freed goes back to the system at once, for which the program starts itself again
with ``MALLOC_MMAP_THRESHOLD_``.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForSequenceClassification, BertConfig, set_seed

from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import known_methods

sys.path.insert(0, str(Path(__file__).parent))
from clipping import Timing
from optim import Batches, peak, reset_peak, resident, table

STEPS = 8


class Clock(transformers.TrainerCallback):
    """Notes when steps end."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Wait for a GPU, and look at the clock."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.moments.append(time.perf_counter())


def train(method: str, rows: int, tokens: int) -> tuple[float, float, float]:
    """Train by one method; return seconds of a step, seconds until the second step ended, and MiB at the peak."""
    set_seed(0)
    model = AutoModelForSequenceClassification.from_config(BertConfig(**MINILM))
    clock = Clock()
    gc.collect()
    before = resident()
    reset_peak()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=rows,
            max_steps=STEPS + 2,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = MethodTrainer(model, arguments, methods=[method], train_dataset=Batches(tokens), callbacks=[clock])
        trainer.remove_callback(transformers.PrinterCallback)
        began = time.perf_counter()
        trainer.train()
    risen = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak() - before
    steps = [after - before for before, after in itertools.pairwise(clock.moments[1:])]
    return statistics.median(steps), clock.moments[1] - began, risen / 2**20


MINILM: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}


def measure(methods: list[str], repeat: int, rows: int, tokens: int) -> None:
    """Train by each method in each round, and print the table."""
    found: dict[str, list[tuple[float, float, float]]] = {method: [] for method in ["full", *methods]}
    train("full", rows, tokens)  # what happens once in a process
    for number, method in itertools.product(range(repeat), found):
        found[method].append(train(method, rows, tokens))
        print(f"\rround {number + 1} of {repeat}: {method:24}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    full, lines = found["full"], []
    for method, seen in found.items():
        ratios = [mine[0] / theirs[0] for mine, theirs in zip(seen, full, strict=True)]
        begins = statistics.median(one[1] for one in seen) - 2 * statistics.median(one[0] for one in seen)
        rises = [mine[2] / theirs[2] for mine, theirs in zip(seen, full, strict=True)]
        row = Timing([1000 * one[0] for one in seen], ratios).row()
        lines.append((f"`{method}`", *row, f"{begins:.1f}", f"{statistics.median(rises):.2f}"))
    header = ("method", "ms a step", "time: ratio to full (quartiles)", "s before the first step", "memory: ratio")
    table(header, lines)
    print(f"{rows} x {tokens} tokens a step, {repeat} rounds, {'a GPU' if torch.cuda.is_available() else 'the CPU'}\n")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--methods", default="", help="names joined by commas; all but full if left out")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    given = parser.parse_args()
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
        os.execv(sys.executable, [sys.executable, *sys.argv])  # noqa: S606  ourselves
    chosen = given.methods.split(",") if given.methods else [name for name in known_methods() if name != "full"]
    measure(chosen, given.repeat, given.rows, given.tokens)


if __name__ == "__main__":
    main()
