"""What recording telemetry costs beside a training step, on a CPU or a GPU.

    python benchmarks/recorder.py [--steps 9] [--rows 16] [--tokens 128] [--model base]

A model of BERT's shape is trained for ``--steps`` steps that count, after two that do not, and the Recorder records
each of them. What it does is timed inside of the very step (on a GPU the device is waited for before and after), so
that whatever else the machine does befalls both. The share is (seconds of recording / seconds of the same step
without it), divided by 10: a training records each tenth step. Median over the steps, with the quartiles in brackets.
Last comes the same with the recorder asked at each step and recording none: what is left in the nine steps between.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForSequenceClassification, BertConfig

from evenkeel.integrations.transformers import MethodTrainer, Recorder

sys.path.insert(0, str(Path(__file__).parent))
from optim import Batches

EVERY = 10
SHAPES: dict[str, dict[str, Any]] = {
    "base": {},
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "tiny": {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 512},
}
EVENTS = ("on_step_begin", "on_pre_optimizer_step", "on_optimizer_step")


def now() -> float:
    """Return the time at which the device has done everything."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Clock(transformers.TrainerCallback):
    """Notes how long each step takes, and how long of it a recorder's callbacks do."""

    def __init__(self, recorder: Recorder) -> None:
        self.steps: list[float] = []
        self.recording: list[float] = []
        self._began = self._own = 0.0
        for event in EVENTS:
            setattr(recorder, event, self._timed(getattr(recorder, event)))

    def _timed(self, call: Any) -> Any:
        def timing(*args: Any, **kwargs: Any) -> Any:
            before = now()
            try:
                return call(*args, **kwargs)
            finally:
                self._own += now() - before

        return timing

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        """Begin to count."""
        self._began, self._own = now(), 0.0

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Keep a step."""
        ended = now()
        self.steps.append(ended - self._began)
        self.recording.append(self._own)
        self._began, self._own = now(), 0.0


def train(shape: dict[str, Any], rows: int, tokens: int, steps: int, *, every: int) -> Clock:
    """Train, recording each so many steps; the first two steps are left out."""
    model = AutoModelForSequenceClassification.from_config(BertConfig(**shape))
    recorder = Recorder(every=every)
    clock = Clock(recorder)
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=rows,
            max_steps=steps + 3,  # the last is always recorded
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = MethodTrainer(
            model, arguments, methods=["component-clip"], train_dataset=Batches(tokens), callbacks=[recorder, clock]
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    clock.steps, clock.recording = clock.steps[2:-1], clock.recording[2:-1]
    return clock


def shown(values: list[float], scale: float, digits: int) -> str:
    """Write a median with its quartiles."""
    low, middle, high = (scale * value for value in statistics.quantiles(values, n=4))
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main() -> None:
    """Read the command line, train twice, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--model", choices=list(SHAPES), default="base")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    print("| | ms a step without it | ms of the recorder | % of a step's time, recording each 10th |")
    print("| --- | --- | --- | --- |")
    for name, every, share in (("a recorded step", 1, EVERY), ("a step that is not recorded", 10**9, 1)):
        clock = train(SHAPES[given.model], given.rows, given.tokens, given.steps, every=every)
        rest = [whole - own for whole, own in zip(clock.steps, clock.recording, strict=True)]
        cost = [own / other / share for own, other in zip(clock.recording, rest, strict=True)]
        print(f"| {name} | {shown(rest, 1000, 1)} | {shown(clock.recording, 1000, 2)} | {shown(cost, 100, 3)} |")
    print(
        f"\nBERT {given.model}, {given.rows} x {given.tokens} tokens, {given.steps} steps, "
        f"{'a GPU' if torch.cuda.is_available() else 'the CPU'}; torch {torch.__version__}, transformers "
        f"{transformers.__version__}, Python {platform.python_version()}, {platform.machine()}, "
        f"{torch.get_num_threads()} threads on {os.cpu_count()} cores, load {load:.1f} before it began\n"
    )


if __name__ == "__main__":
    main()
