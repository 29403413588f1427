"""How long `evenkeel.clip_grad_norm_` takes beside torch's own clipping, on this machine's CPU.

    python benchmarks/clipping.py [--repeat 15] [--markdown]

All ways of clipping are timed one after the other, round by round, so that whatever else the machine does befalls all
of them. A ratio is the median over the rounds of (this way / torch's way in the same round), with the quartiles in
brackets; torch's way is `torch.nn.utils.clip_grad_norm_(parameters, foreach=True)`, one coefficient for everything.
Gradients are refilled before every call, outside the time that is measured.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, BertConfig

import evenkeel as ek
from evenkeel.clipping import cpu

NOTHING, EVERYTHING = 1e9, 1e-3  # thresholds: above and below every norm


class Timing(NamedTuple):
    """One way of clipping: milliseconds, and ratios to torch's way in the same round."""

    milliseconds: list[float]
    ratios: list[float]

    def row(self) -> tuple[str, str]:
        """Return the median time, and the median ratio with its quartiles."""
        low, middle, high = statistics.quantiles(self.ratios, n=4)
        return f"{statistics.median(self.milliseconds):.1f}", f"{middle:.2f} ({low:.2f} to {high:.2f})"


def bert_large() -> nn.Module:
    """Build BERT-large for classification: 393 parameters, 335 million entries."""
    config = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    return AutoModelForSequenceClassification.from_config(config)


def small() -> nn.Module:
    """Build a BERT of two million entries, about the size of the embedded model."""
    config = BertConfig(
        hidden_size=128, num_hidden_layers=6, num_attention_heads=4, intermediate_size=512, vocab_size=6000
    )
    return AutoModelForSequenceClassification.from_config(config)


def alike(count: int, entries: int) -> nn.Module:
    """Build a model of ``count`` parameters that have ``entries`` together."""
    model = nn.Module()
    for index in range(count):
        model.register_parameter(f"p{index}", nn.Parameter(torch.empty(entries // count)))
    return model


def published(parameters: list[nn.Parameter], max_norm: float) -> dict[str, list[float]]:
    """Clip as the published code does: one parameter after the other, numbers for its statistics taken off each."""
    log: dict[str, list[float]] = {"before": [], "after": [], "weight": [], "largest": []}
    for parameter in parameters:
        if parameter.grad is None:
            continue
        log["before"].append(parameter.grad.norm().item())
        nn.utils.clip_grad_norm_([parameter], max_norm)
        log["after"].append(parameter.grad.norm().item())
        log["weight"].append(parameter.norm().item())
        log["largest"].append(parameter.grad.abs().max().item())
    return log


def ways(model: nn.Module) -> dict[str, Callable[[], object]]:
    """Return the ways of clipping ``model``; the first is what the others are compared with."""
    parameters = list(model.parameters())
    parts = ek.components(model)
    whole = ek.components(model, by="global")
    adaptive = ek.thresholds.Ema(1.05, warmup=0)
    return {
        "torch, global": lambda: nn.utils.clip_grad_norm_(parameters, EVERYTHING, foreach=True),
        "evenkeel, nothing clipped": lambda: ek.clip_grad_norm_(parts, NOTHING),
        "evenkeel, everything clipped": lambda: ek.clip_grad_norm_(parts, EVERYTHING),
        "evenkeel, Ema": lambda: ek.clip_grad_norm_(parts, adaptive),
        "evenkeel, global, nothing clipped": lambda: ek.clip_grad_norm_(whole, NOTHING),
        "evenkeel, global, clipped": lambda: ek.clip_grad_norm_(whole, EVERYTHING),
        "evenkeel without the extra cpu, nothing clipped": without_kernels(lambda: ek.clip_grad_norm_(parts, NOTHING)),
        "evenkeel without the extra cpu, everything clipped": without_kernels(
            lambda: ek.clip_grad_norm_(parts, EVERYTHING)
        ),
        "published loop with statistics": lambda: published(parameters, EVERYTHING),
    }


def without_kernels(call: Callable[[], object]) -> Callable[[], object]:
    """Return a call as it is where Numba is not installed."""

    def calling() -> None:
        available, cpu.available = cpu.available, lambda: False
        try:
            call()
        finally:
            cpu.available = available

    return calling


def fill(model: nn.Module) -> list[Tensor]:
    """Give every parameter a gradient; return what to refill it with."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def refill(model: nn.Module, source: list[Tensor]) -> None:
    """Give the gradients back what clipping took."""
    with torch.no_grad():
        torch._foreach_copy_([parameter.grad for parameter in model.parameters()], source)


def timed(ways: dict[str, Callable[[], object]], repeat: int, before: Callable[[], object]) -> dict[str, Timing]:
    """Time all ways, ``repeat`` rounds after two that do not count; the ratios are to the first."""
    found = {name: Timing([], []) for name in ways}
    for round_ in range(repeat + 2):
        reference = 0.0
        for name, call in ways.items():
            before()
            start = time.perf_counter()
            call()
            taken = 1000 * (time.perf_counter() - start)
            reference = reference or taken
            if round_ >= 2:
                found[name].milliseconds.append(taken)
                found[name].ratios.append(taken / reference)
    return found


def accuracy() -> str:
    """Compare both norms of BERT-large's word embeddings with float64."""
    model = nn.Linear(1024, 30522, bias=False)
    model.weight.grad = torch.randn(30522, 1024, generator=torch.Generator().manual_seed(0))
    true = torch.linalg.vector_norm(model.weight.grad.double()).item()
    ours = ek.clip_grad_norm_(ek.components(model), NOTHING).norms.item()
    theirs = nn.utils.clip_grad_norm_(model.parameters(), NOTHING).item()
    return f"norm of a 30522 x 1024 gradient against float64: evenkeel {abs(ours / true - 1):.1e}, " + (
        f"torch {abs(theirs / true - 1):.1e}"
    )


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=15, help="rounds")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    arguments = parser.parse_args()
    rows: list[tuple[str, ...]] = []
    for name, make in {
        "BERT-large, 335M entries, 393 tensors": bert_large,
        "small BERT, 2M entries, 105 tensors": small,
        "335M entries in 400 tensors": lambda: alike(400, 335_000_000),
        "335M entries in 10,000 tensors": lambda: alike(10_000, 335_000_000),
    }.items():
        model = make()
        for way, timing in timed(ways(model), arguments.repeat, functools.partial(refill, model, fill(model))).items():
            rows.append((name, way, *timing.row()))
            name = ""
    header = ("gradients", "way", "ms", "ratio to torch, global (quartiles)")
    versions = (
        f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}, {torch.get_num_threads()} threads on {os.cpu_count()} cores, {arguments.repeat} rounds"
    )
    if arguments.markdown:
        for row in (header, ("---", "---", "---:", "---:"), *rows):
            print("| " + " | ".join(row) + " |")
        print(f"\n{versions}; {accuracy()}.")
        return
    table = Table(title="clip_grad_norm_")
    for column in header:
        table.add_column(column, justify="right" if column in header[2:] else "left")
    for row in rows:
        table.add_row(*row)
    console = Console(width=130)
    console.print(table)
    console.print(versions)
    console.print(accuracy())


if __name__ == "__main__":
    main()
