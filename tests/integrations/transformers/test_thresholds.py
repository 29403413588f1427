"""ComponentClip with thresholds that learn: they belong to one training, and a resumed training goes on with them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import _models
from tests.integrations._training import BATCH, DATA, Before, assert_same_weights
from torch import nn
from transformers import Trainer, TrainingArguments

from evenkeel import ClipStatistics, components, thresholds
from evenkeel.errors import EvenkeelError, GradientError, ThresholdError
from evenkeel.integrations.transformers import ComponentClip

Arguments = Callable[..., TrainingArguments]
STEPS = len(DATA) // BATCH
SAVED = STEPS + 2
TWO_EPOCHS: dict[str, Any] = {
    "num_train_epochs": 2,
    "train_sampling_strategy": "random",
    "save_strategy": "steps",
    "save_steps": SAVED,
}


def run(model: nn.Module, arguments: TrainingArguments, *callbacks: Any, resume: Path | None = None) -> Trainer:
    trainer = Trainer(model, arguments, train_dataset=DATA, callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def ema() -> thresholds.Ema:
    return thresholds.Ema(0.9, beta=0.7, warmup=2, warmup_max_norm=0.5)


@pytest.mark.parametrize(
    "make",
    [ema, pytest.param(lambda: thresholds.Percentile(50, window=4), marks=pytest.mark.slow)],
    ids=["Ema", "Percentile"],
)
def test_a_resumed_training_is_an_uninterrupted_one(
    arguments: Arguments, tmp_path: Path, make: Callable[[], thresholds.Threshold]
) -> None:
    whole, resumed, forgetful = _models.bert(), _models.bert(seed=1), _models.bert(seed=1)
    run(whole, arguments(**TWO_EPOCHS), ComponentClip(make()))
    checkpoint = tmp_path / f"checkpoint-{SAVED}"
    run(resumed, arguments(**TWO_EPOCHS), ComponentClip(make()), resume=checkpoint)
    assert_same_weights(resumed, whole, tolerance=0)
    run(forgetful, arguments(**TWO_EPOCHS), ComponentClip(math.inf, by="global"), resume=numbers_in(checkpoint))
    with pytest.raises(AssertionError, match="differs by"):
        assert_same_weights(forgetful, whole)  # what was learnt did matter


def numbers_in(checkpoint: Path) -> Path:
    """Make it a checkpoint that was written with a number."""
    file = checkpoint / "trainer_state.json"
    state = json.loads(file.read_text())
    state["stateful_callbacks"]["ComponentClip"]["attributes"]["_learnt"] = None
    file.write_text(json.dumps(state))
    return checkpoint


def test_the_next_training_begins_anew(arguments: Arguments) -> None:
    clip = ComponentClip(ema())
    once, again = _models.bert(), _models.bert()
    run(once, arguments(), clip)
    run(again, arguments(), clip)
    assert_same_weights(again, once, tolerance=0)


def test_what_was_known_before_is_used(arguments: Arguments) -> None:
    model = _models.bert()
    known = ema()
    first = ComponentClip(known)
    run(model, arguments(), first)
    assert isinstance(first.max_norm, thresholds.Ema)
    known.load_state_dict(first.max_norm.state_dict())
    second = ComponentClip(known)
    run(_models.bert(), arguments(max_steps=1), second)
    assert second.last is not None
    assert second.last.thresholds.max() < 0.5  # past its warm-up, in which the total norm may be 0.5


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        (ema(), thresholds.Percentile(10), "written with the threshold 'Ema' and this training has Percentile"),
        (ema(), 0.05, r"written with the threshold Ema and this training has 0\.05"),
        (0.05, ema(), "written with the threshold None and this training has Ema"),
    ],
    ids=["another", "a number now", "a number then"],
)
def test_another_threshold_cannot_go_on(arguments: Arguments, tmp_path: Path, then: Any, now: Any, said: str) -> None:
    run(_models.bert(), arguments(**TWO_EPOCHS), ComponentClip(then))
    with pytest.raises(ThresholdError, match=said):
        run(_models.bert(), arguments(**TWO_EPOCHS), ComponentClip(now), resume=tmp_path / f"checkpoint-{SAVED}")


def test_a_spoilt_state_is_told_as_such(arguments: Arguments, tmp_path: Path) -> None:
    run(_models.bert(), arguments(**TWO_EPOCHS), ComponentClip(ema()))
    file = tmp_path / f"checkpoint-{SAVED}" / "trainer_state.json"
    state = json.loads(file.read_text())
    for spoilt in ("", "no base64", "AAAA", None):
        state["stateful_callbacks"]["ComponentClip"]["attributes"]["_learnt"]["state"] = spoilt
        file.write_text(json.dumps(state))
        with pytest.raises(
            ThresholdError, match=r"state of Ema in the checkpoint's trainer_state\.json cannot be read"
        ):
            run(_models.bert(), arguments(**TWO_EPOCHS), ComponentClip(ema()), resume=file.parent)


def test_a_training_begun_without_it_goes_on_with_it(arguments: Arguments, tmp_path: Path) -> None:
    usual = TWO_EPOCHS | {"save_steps": 3}
    run(_models.bert(), arguments(**usual))
    clip = ComponentClip(0.05)
    run(_models.bert(), arguments(**usual), clip, resume=tmp_path / "checkpoint-3")  # and saves again at 6 and 9
    assert clip.last is not None
    saved = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())["stateful_callbacks"]
    assert saved["ComponentClip"]["args"] == {
        "max_norm": 0.05,
        "by": "tensor",
        "also_global": False,
        "nonfinite": "propagate",
        "log": True,
    }


# --- transformers' own way of restoring callbacks, which makes new ones


def test_a_number_is_restored_by_transformers_too(arguments: Arguments, tmp_path: Path) -> None:
    whole, resumed = _models.bert(), _models.bert(seed=1)
    run(whole, arguments(**TWO_EPOCHS), ComponentClip(0.02, by="module"))
    again = arguments(restore_callback_states_from_checkpoint=True, **TWO_EPOCHS)
    trainer = run(resumed, again, ComponentClip(7.0), resume=tmp_path / f"checkpoint-{SAVED}")
    assert_same_weights(resumed, whole, tolerance=0)
    restored = next(one for one in trainer.callback_handler.callbacks if isinstance(one, ComponentClip))
    assert (restored.max_norm, restored.by) == (0.02, "module")


@pytest.mark.parametrize(
    ("clip", "lost"),
    [
        (lambda: ComponentClip(ema()), "max_norm"),
        (lambda: ComponentClip({"query": 0.01, "*": 0.1}), "max_norm"),
        (lambda: ComponentClip(by=lambda part: part.layer), "by"),
        (lambda: ComponentClip(statistics=ClipStatistics()), "statistics"),
    ],
    ids=["threshold", "mapping", "grouping", "statistics"],
)
def test_what_json_cannot_hold_is_not_lost_silently(
    arguments: Arguments, tmp_path: Path, clip: Callable[[], ComponentClip], lost: str
) -> None:
    run(_models.bert(), arguments(**TWO_EPOCHS), clip())
    again = arguments(restore_callback_states_from_checkpoint=True, **TWO_EPOCHS)
    with pytest.raises(EvenkeelError, match=f"rebuilt ComponentClip without its {lost}, which JSON cannot hold"):
        run(_models.bert(), again, clip(), resume=tmp_path / f"checkpoint-{SAVED}")


# --- what else it takes


def test_statistics_count_every_step(arguments: Arguments) -> None:
    statistics = ClipStatistics()
    model = _models.bert()
    run(model, arguments(), ComponentClip({"query": 1e-6, "*": math.inf}, statistics=statistics))
    roles = {part.name: part.role for part in components(model)}
    assert set(statistics.steps.values()) == {STEPS}
    assert statistics.clipped == {name: 1.0 if role == "query" else 0.0 for name, role in roles.items()}


def poison(model: nn.Module, _: object, step: int) -> None:
    if step == 2:
        model.get_parameter("classifier.bias").grad[0] = math.nan  # type: ignore[index]


def test_gradients_that_are_not_finite_can_be_left_out(arguments: Arguments) -> None:
    model = _models.bert()
    run(model, arguments(), Before(poison), ComponentClip(0.05, nonfinite="zero"))
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    spoilt = _models.bert()
    run(spoilt, arguments(), Before(poison), ComponentClip(0.05))
    broken = [name for name, parameter in spoilt.named_parameters() if parameter.isnan().any()]
    assert "classifier.bias" in broken
    with pytest.raises(GradientError, match="not finite in 1 of .* components: classifier.bias"):
        run(_models.bert(), arguments(), Before(poison), ComponentClip(0.05, nonfinite="error"))


def test_a_bad_answer_to_nonfinite_is_refused_at_once() -> None:
    with pytest.raises(GradientError, match="'propagate', 'zero' or 'error'"):
        ComponentClip(nonfinite="ignore")  # type: ignore[arg-type]


def test_a_threshold_that_fits_nothing_is_refused_before_training(arguments: Arguments) -> None:
    model = _models.bert()
    before = torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])
    with pytest.raises(ThresholdError, match="Fixed holds 2 values, and there are"):
        run(model, arguments(), ComponentClip(thresholds.Fixed((0.1, 0.2))))
    assert torch.equal(before, torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
