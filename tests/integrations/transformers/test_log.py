"""What the Trainer's log is told of clipping, and who sees it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests import _models
from tests.integrations._training import BATCH, DATA, Before, by_hand, mean_over_all
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from evenkeel import components
from evenkeel.integrations.transformers import ComponentClip

Arguments = Callable[..., TrainingArguments]
MAX_NORM = 0.02


class Reporter(TrainerCallback):
    """Keeps what a reporter such as TensorBoard's is told."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.told.append(dict(logs))


@pytest.fixture
def reporter(monkeypatch: pytest.MonkeyPatch) -> Reporter:
    """A reporter where the Trainer puts those of ``report_to``: before all callbacks of the user."""
    reporter = Reporter()
    monkeypatch.setattr("transformers.trainer.get_reporting_integration_callbacks", lambda _: [reporter])
    return reporter


def run(args: TrainingArguments, *callbacks: TrainerCallback, **more: Any) -> Trainer:
    kept = list(callbacks)
    trainer = Trainer(_models.bert(), args, train_dataset=DATA, callbacks=kept, compute_loss_func=mean_over_all, **more)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


def of_roles(norms: dict[str, float]) -> dict[str, float]:
    """Joint norms by role, from norms by parameter."""
    squares: dict[str, float] = {}
    for part in components(_models.bert()):
        squares[str(part.role)] = squares.get(str(part.role), 0.0) + norms[part.name] ** 2
    return {f"grad_norm/{role}": math.sqrt(square) for role, square in squares.items()}


def test_reporters_see_the_true_norms_by_role_before_clipping(arguments: Arguments, reporter: Reporter) -> None:
    trainer = run(arguments(logging_steps=1), ComponentClip(MAX_NORM))
    expected = by_hand(_models.bert(), max_norm=MAX_NORM)
    entries = [entry for entry in reporter.told if "loss" in entry]
    assert len(entries) == len(expected) == len(DATA) // BATCH
    for entry, norms in zip(entries, expected, strict=True):
        roles = of_roles(norms)
        assert {name: entry[name] for name in roles} == pytest.approx(roles, rel=1e-3, abs=1e-6)
        assert entry["grad_norm"] == pytest.approx(math.hypot(*norms.values()), rel=1e-3)
        seen = [norm for norm in norms.values() if norm > 0]
        assert entry["clip_rate"] == pytest.approx(sum(norm > MAX_NORM for norm in seen) / len(seen), abs=0.03)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [{k: v for k, v in entry.items() if k != "step"} for entry in history] == entries
    assert [entry["step"] for entry in history] == [1, 2, 3, 4, 5]


def test_clip_rates_are_over_the_steps_since_the_last_entry(arguments: Arguments, reporter: Reporter) -> None:
    only_first: list[float] = []

    def loosen(*_: object) -> None:
        clip.max_norm = {"query": 1e-9 if len(only_first) < 3 else math.inf, "*": math.inf}
        only_first.append(0)

    clip = ComponentClip({"query": 1e-9, "*": math.inf})
    run(arguments(logging_steps=4, max_steps=4), Before(loosen), clip)
    (entry,) = (entry for entry in reporter.told if "loss" in entry)
    assert entry["clip_rate/query"] == pytest.approx(0.75)
    assert entry["clip_rate/key"] == 0.0
    queries = len([part for part in components(_models.bert()) if part.role == "query"])
    others = len(components(_models.bert())) - queries
    assert entry["clip_rate"] == pytest.approx(0.75 * queries / (queries + others), abs=0.02)


def test_an_evaluation_and_the_end_of_training_are_left_alone(arguments: Arguments, reporter: Reporter) -> None:
    run(arguments(eval_strategy="epoch", logging_steps=2), ComponentClip(MAX_NORM), eval_dataset=DATA)
    others = [entry for entry in reporter.told if "loss" not in entry]
    assert {"eval_loss", "train_loss"} <= {name for entry in others for name in entry}
    assert not any("clip_rate" in name or "grad_norm" in name for entry in others for name in entry)


@pytest.mark.parametrize("by", ["layer", "global"])
def test_components_without_a_role_leave_the_whole(arguments: Arguments, reporter: Reporter, by: Any) -> None:
    run(arguments(logging_steps=5), ComponentClip(MAX_NORM, by=by))
    entry = reporter.told[0]
    assert {"grad_norm", "clip_rate"} <= set(entry)
    assert not any("/" in name for name in entry)


def test_it_can_be_left_out(arguments: Arguments, reporter: Reporter) -> None:
    trainer = run(arguments(logging_steps=1), ComponentClip(MAX_NORM, log=False))
    assert set(reporter.told[0]) == {"loss", "grad_norm", "learning_rate", "epoch"}
    assert len(trainer.callback_handler.callbacks) == 3  # no other callback was put in


def test_under_global_clipping_the_norm_is_the_one_before_it(arguments: Arguments, reporter: Reporter) -> None:
    run(arguments(logging_steps=1, max_grad_norm=0.001), ComponentClip(math.inf, also_global=True))
    expected = by_hand(_models.bert(), max_norm=math.inf)
    assert reporter.told[0]["grad_norm"] == pytest.approx(math.hypot(*expected[0].values()), rel=1e-3)
    squares = sum(value**2 for name, value in reporter.told[0].items() if name.startswith("grad_norm/"))
    assert math.sqrt(squares) == pytest.approx(0.001, rel=1e-2)  # what component clipping saw


def test_the_next_training_logs_as_the_first(arguments: Arguments, reporter: Reporter) -> None:
    trainer = run(arguments(logging_steps=5), ComponentClip(MAX_NORM))
    count = len(trainer.callback_handler.callbacks)
    trainer.train()
    assert len(trainer.callback_handler.callbacks) == count
    assert sum("clip_rate" in entry for entry in reporter.told) == 2


def test_a_checkpoint_and_a_model_card_are_clean(arguments: Arguments, tmp_path: Path) -> None:
    args = arguments(logging_steps=1, eval_strategy="epoch", save_strategy="epoch")
    trainer = run(args, ComponentClip(MAX_NORM), eval_dataset=DATA)
    state = json.loads((tmp_path / "checkpoint-5" / "trainer_state.json").read_text())
    assert "clip_rate/query" in state["log_history"][0]
    trainer.create_model_card(model_name="kept", dataset="own rows", tasks="text-classification")
    card = (tmp_path / "README.md").read_text()
    assert "learning_rate" in card
    assert not any(word in card for word in ("grad_norm", "clip_rate", "Clip", str(tmp_path)))
