"""How long `evenkeel.components` takes to find a model's components; building the model is not counted.

    python benchmarks/components.py [--repeat 9]

Prints a table: median, fastest and slowest of the repetitions (the first call in the process, which reads the tables of
rules, stands apart) in milliseconds of wall time, and the processor time beside it, which other work on the machine
disturbs less.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedModel,
)

import evenkeel as ek


def bert_large() -> PreTrainedModel:
    """Build BERT-large for classification."""
    config = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    return AutoModelForSequenceClassification.from_config(config)


def llama_70b() -> PreTrainedModel:
    """Build Llama with the sizes of its 70B model."""
    return AutoModelForCausalLM.from_config(
        LlamaConfig(
            hidden_size=8192,
            num_hidden_layers=80,
            num_attention_heads=64,
            num_key_value_heads=8,
            intermediate_size=28672,
        )
    )


def mixtral_8x22b() -> PreTrainedModel:
    """Build Mixtral with the sizes of 8x22B: stacked experts are cut."""
    return AutoModelForCausalLM.from_config(
        MixtralConfig(hidden_size=6144, num_hidden_layers=56, num_attention_heads=48, intermediate_size=16384)
    )


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "BERT-large": bert_large,
    "Llama 70B": llama_70b,
    "Mixtral 8x22B": mixtral_8x22b,
}


def measure(model: PreTrainedModel, repeat: int) -> tuple[float, list[float], list[float]]:
    """Return milliseconds: wall time of the first call, wall and processor time of ``repeat`` further ones."""
    walls: list[float] = []
    cpus: list[float] = []
    for _ in range(repeat + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        ek.components(model)
        walls.append(1000 * (time.perf_counter() - wall))
        cpus.append(1000 * (time.process_time() - cpu))
    return walls[0], walls[1:], cpus[1:]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=9, help="repetitions after the first call")
    repeat = parser.parse_args().repeat
    table = Table(title=f"evenkeel.components: ms; torch {torch.__version__}, transformers {transformers.__version__}")
    for column in ("model (on meta)", "entries", "components", "first", "median", "fastest", "slowest", "processor"):
        table.add_column(column, justify="left" if column.startswith("model") else "right")
    for name, make in MODELS.items():
        with torch.device("meta"):
            model = make()
        first, walls, cpus = measure(model, repeat)
        parts = ek.components(model)
        numbers = (first, statistics.median(walls), min(walls), max(walls), statistics.median(cpus))
        table.add_row(name, f"{parts.size:,}", f"{len(parts):,}", *(f"{number:.1f}" for number in numbers))
    console = Console(width=120)
    console.print(table)
    console.print(f"{platform.machine()}, Python {platform.python_version()}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
