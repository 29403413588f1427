from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Call = Callable[..., Any]


def usual(data: Path, model: Path, out: Path, *more: object) -> list[object]:
    files = ["--train", data / "train.csv", "--validation", data / "validation.csv", "--model", model]
    return [*files, "--out", out, "--epochs", "2", "--batch-size", "8", "--lr", "5e-3", *more]


def test_a_model_is_kept(evenkeel: Call, small_data: Path, small_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = evenkeel("finetune", *usual(small_data, small_model, out, "--seed", "3"))
    assert said.code == 0
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["spec"]["method"], metrics["spec"]["seed"]) == ("component-clip", 3)
    printed = " ".join(said.out.split())
    assert f"accuracy {metrics['scores']['validation']:.3f} on validation (always guessing" in printed
    assert ("no better than chance" in printed) is metrics["failed"]
    assert f"savedin{out}:themodel,metrics.json,predictions.parquet" in "".join(said.out.split())
    assert (out / "model.safetensors").is_file()


def test_a_mix_is_one_model(evenkeel: Call, small_data: Path, small_model: Path, tmp_path: Path) -> None:
    options = usual(small_data, small_model, tmp_path / "out", "--methods", "component-clip+gradual-unfreezing")
    assert evenkeel("finetune", *options).code == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["steps"] == 16  # two epochs of four steps for each of two blocks


def test_a_training_that_diverges_exits_with_1(
    evenkeel: Call, small_data: Path, small_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out [b]"
    said = evenkeel("finetune", *usual(small_data, small_model, out, "--lr", "1e30", "--methods", "full"))
    assert said.code == 1
    assert f"Training diverged: the loss is no number any more. Metrics are in {out}; no model was saved." in said.out
    assert not (out / "model.safetensors").exists()
