"""The plain loop that measures what pretraining is worth; ``python -m tests.tasks.grammar._finetune`` prints a line."""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
import transformers
from torch import Tensor

from evenkeel.models import find_model
from evenkeel.tasks.grammar import TASKS, rows

BATCH = 16


def finetune(task: str, *, pretrained: bool, lr: float, epochs: int, seed: int, n: int | None = None) -> float:
    """Fine-tune with AdamW, no warm-up and linear decay; return the validation accuracy."""
    folder = find_model("tiny").location
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts, labels = _encode(tokenizer, rows(task, "train", n=n))
    torch.manual_seed(seed)
    model = _model(folder, pretrained=pretrained).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    steps = epochs * -(-len(texts) // BATCH)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 0, steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(texts)).split(BATCH):
            batch = tokenizer.pad([texts[at] for at in chosen], return_tensors="pt")
            model(**batch, labels=labels[chosen]).loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return _accuracy(model.eval(), tokenizer, *_encode(tokenizer, rows(task, "validation")))


def _model(folder: str, *, pretrained: bool) -> Any:
    auto = transformers.AutoModelForSequenceClassification
    if pretrained:
        return auto.from_pretrained(folder, num_labels=2, dtype=torch.float32)
    return auto.from_config(transformers.AutoConfig.from_pretrained(folder, num_labels=2), dtype=torch.float32)


def _encode(tokenizer: Any, table: dict[str, list[Any]]) -> tuple[list[Any], Tensor]:
    columns = [column for name, column in table.items() if name != "label"]
    return [tokenizer(*texts) for texts in zip(*columns, strict=True)], torch.tensor(table["label"])


def _accuracy(model: Any, tokenizer: Any, texts: list[Any], labels: Tensor) -> float:
    with torch.no_grad():
        logits = [
            model(**tokenizer.pad(texts[start : start + 100], return_tensors="pt")).logits
            for start in range(0, len(texts), 100)
        ]
    return float((torch.cat(logits).argmax(-1) == labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--random", action="store_true", help="from random initialisation")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    scores = [
        finetune(
            options.task,
            pretrained=not options.random,
            lr=options.lr,
            epochs=options.epochs,
            seed=seed,
            n=options.rows,
        )
        for seed in range(1, options.seeds + 1)
    ]
    spread = statistics.stdev(scores) if len(scores) > 1 else float("nan")
    start = "random" if options.random else "pretrained"
    each = " ".join(f"{score:.3f}" for score in scores)
    print(f"{options.task} {start} lr {options.lr:g}: {statistics.mean(scores):.3f} +- {spread:.3f}  ({each})")


if __name__ == "__main__":
    main()
