"""A recipe on one device, as torchtune writes them: accumulation, mixed precision, a threshold that learns, resuming.

Run it: ``python examples/plain_loop.py``. It trains the embedded model on the CPU in a few seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

import evenkeel as ek
from evenkeel.models import find_model, load_model, load_tokenizer

TEXTS = ["the cat sleeps", "the cat sleep", "a dog runs", "a dog run", "the birds sing", "the birds sings"] * 8
LABELS = torch.tensor([1, 0] * (len(TEXTS) // 2))
MICRO_BATCH, ACCUMULATED = 4, 2


def main() -> None:
    """Train, and say what was clipped."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=6, help="optimizer steps")
    options.add_argument("--loss-scale", action="store_true", help="multiply the loss by a scale, as fp16 needs it")
    options.add_argument("--checkpoint", type=Path, default=Path("plain_loop.pt"), help="taken up where it exists")
    chosen = options.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = find_model("tiny")
    model = load_model(source, ["no", "yes"], seed=0).to(device)
    tokens = load_tokenizer(source)(TEXTS, padding=True, return_tensors="pt").to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    scaler = torch.amp.GradScaler(device.type, enabled=chosen.loss_scale, init_scale=2.0**10)

    parts = ek.components(model)  # once: what can be computed once is remembered with them
    threshold = ek.thresholds.Ema(1.05, warmup=3)  # AdaGC; a number such as 0.05 needs no state
    statistics = ek.ClipStatistics()
    first = 0
    if chosen.checkpoint.exists():
        saved = torch.load(chosen.checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        scaler.load_state_dict(saved["scaler"])
        threshold.load_state_dict(saved["threshold"])
        first = saved["step"]

    model.train()
    for step in range(first, chosen.steps):
        total = torch.zeros((), device=device)
        for micro in range(ACCUMULATED):
            rows = batch(step * ACCUMULATED + micro)
            inputs = {name: values[rows] for name, values in tokens.items()}
            loss = model(**inputs, labels=LABELS[rows].to(device)).loss / ACCUMULATED
            scaler.scale(loss).backward()
            total += loss.detach()
        scaler.unscale_(optimizer)  # first the scale, ...
        result = ek.clip_grad_norm_(parts, threshold)  # ... then the clipping, once for all micro-batches, ...
        statistics.update(result)
        scaler.step(optimizer)  # ... then the step, which the scaler leaves out where gradients overflowed
        scaler.update()
        optimizer.zero_grad()
        print(f"step {step}: loss {total.item():.4f}, norm {result.total_norm.item():.4f}")

    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
    torch.save(saved | {"threshold": threshold.state_dict(), "step": chosen.steps}, chosen.checkpoint)
    often = sorted(statistics.clipped.items(), key=lambda item: -item[1])[:3]
    print("most often clipped: " + ", ".join(f"{name} {share:.0%}" for name, share in often))


def batch(number: int) -> Tensor:
    """Return the rows of a micro-batch."""
    return torch.arange(number * MICRO_BATCH, (number + 1) * MICRO_BATCH) % len(TEXTS)


if __name__ == "__main__":
    main()
