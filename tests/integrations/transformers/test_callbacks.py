"""The Trainer's callbacks against loops written by hand; ``MethodTrainer`` has the file beside this one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests import _models
from tests.integrations._training import (
    BATCH,
    DATA,
    After,
    Before,
    assert_same_weights,
    by_hand,
    mean_over_all,
    weights,
)
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from evenkeel import components
from evenkeel.errors import GradientError, ThresholdError
from evenkeel.integrations._unscale import unscale
from evenkeel.integrations.transformers import ComponentClip, Recorder

MAX_NORM = 0.02  # below most components' norms here, above some


def seen(clip: ComponentClip, norms: list[dict[str, float]]) -> Before:
    """Collect the norms that ``clip``, which stands before this, has just seen."""

    def collect(*_: object) -> None:
        assert clip.last is not None
        norms.append(clip.last.to_dict())

    return Before(collect)


def train(
    model: nn.Module, args: TrainingArguments, clip: ComponentClip, *first: TrainerCallback, scale: float | None = None
) -> tuple[Trainer, list[dict[str, float]]]:
    """Train with ``clip`` behind the callbacks ``first``; return the norms of every step, too."""
    norms: list[dict[str, float]] = []
    callbacks = [*first, clip, seen(clip, norms)]
    trainer = Trainer(model, args, train_dataset=DATA, compute_loss_func=mean_over_all, callbacks=callbacks)
    if scale is not None:  # as on a GPU in fp16
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10_000)
    trainer.train()
    return trainer, norms


# --- ComponentClip


def test_it_is_a_loop_that_clips_every_parameter_on_its_own(arguments: Callable[..., TrainingArguments]) -> None:
    ours, theirs, unclipped = _models.bert(), _models.bert(), _models.bert()
    _, norms = train(ours, arguments(num_train_epochs=2), ComponentClip(max_norm=MAX_NORM))
    expected = by_hand(theirs, epochs=2, max_norm=MAX_NORM)
    assert_same_weights(ours, theirs)
    assert len(norms) == len(expected) == 10
    for mine, other in zip(norms, expected, strict=True):
        assert mine == pytest.approx(other, rel=1e-3, abs=1e-6)
    by_hand(unclipped, epochs=2, max_norm=math.inf)
    with pytest.raises(AssertionError, match="differs"):  # clipping did matter
        assert_same_weights(ours, unclipped, tolerance=1e-3)


def test_accumulated_gradients_are_clipped_once_and_whole(arguments: Callable[..., TrainingArguments]) -> None:
    ours, theirs = _models.bert(), _models.bert()
    args = arguments(per_device_train_batch_size=BATCH // 2, gradient_accumulation_steps=2, num_train_epochs=2)
    trainer, norms = train(ours, args, ComponentClip(max_norm=MAX_NORM))
    expected = by_hand(theirs, epochs=2, max_norm=MAX_NORM)
    assert trainer.state.global_step == len(norms) == len(expected)
    assert norms[0] == pytest.approx(expected[0], rel=1e-4, abs=1e-7)
    assert_same_weights(ours, theirs)


def test_a_last_incomplete_accumulation_is_clipped_too(arguments: Callable[..., TrainingArguments]) -> None:
    args = arguments(gradient_accumulation_steps=3)  # five batches: three and two
    trainer, norms = train(_models.bert(), args, ComponentClip(max_norm=MAX_NORM))
    assert trainer.state.global_step == len(norms) == 2


def test_under_autocast_it_clips_what_the_optimizer_sees(arguments: Callable[..., TrainingArguments]) -> None:
    ours, theirs, exact = _models.bert(), _models.bert(), _models.bert()
    train(ours, arguments(bf16=True), ComponentClip(max_norm=MAX_NORM))
    by_hand(theirs, autocast=True, max_norm=MAX_NORM)
    by_hand(exact, max_norm=MAX_NORM)
    assert_same_weights(ours, theirs)
    with pytest.raises(AssertionError, match="differs"):  # autocast was on
        assert_same_weights(ours, exact)


@pytest.mark.parametrize("max_norm", [{"query": 0.001, "layer.1.*": 0.01, "*": math.inf}, 0.01])
@pytest.mark.parametrize("by", ["tensor", "role"])
def test_thresholds_and_partition_are_those_asked_for(
    arguments: Callable[..., TrainingArguments], max_norm: Any, by: Any
) -> None:
    if by == "role" and isinstance(max_norm, dict):
        max_norm = {"query": 0.001, "*": math.inf}
    clip = ComponentClip(max_norm=max_norm, by=by)
    model = _models.bert()
    train(model, arguments(max_steps=1), clip)
    assert clip.last is not None
    assert clip.last.names == tuple(part.name for part in components(model, by))
    expected = 0.01 if max_norm == 0.01 else 0.001
    query = next(index for index, part in enumerate(components(model, by)) if part.role == "query")
    assert clip.last.thresholds[query].item() == pytest.approx(expected)


def test_components_follow_what_is_frozen_and_released(arguments: Callable[..., TrainingArguments]) -> None:
    freeze = After(lambda model, _, step: model.bert.embeddings.requires_grad_(step not in (1, 2)))  # type: ignore[union-attr, operator]
    _, norms = train(_models.bert(), arguments(), ComponentClip(max_norm=MAX_NORM), freeze)
    assert [len(step) for step in norms] == [41, 36, 36, 41, 41]
    assert not any(name.startswith("bert.embeddings") for name in norms[1])


def test_one_callback_serves_one_training_after_the_other(arguments: Callable[..., TrainingArguments]) -> None:
    clip = ComponentClip(max_norm=MAX_NORM)
    for layers, count in ((2, 41), (3, 57)):
        train(_models.bert(layers), arguments(max_steps=1), clip)
        assert clip.last is not None
        assert len(clip.last.norms) == count


def test_global_clipping_beside_it_is_refused(arguments: Callable[..., TrainingArguments]) -> None:
    model, before = _models.bert(), _models.bert()
    with pytest.raises(GradientError, match=r"clips globally \(max_grad_norm=1.0\).*max_grad_norm=0\)"):
        train(model, arguments(max_grad_norm=1.0), ComponentClip())
    assert_same_weights(model, before, tolerance=0)


def test_global_clipping_acts_first_where_it_is_wanted(arguments: Callable[..., TrainingArguments]) -> None:
    clip = ComponentClip(max_norm=math.inf, also_global=True)
    train(_models.bert(), arguments(max_grad_norm=0.003), clip)
    assert clip.last is not None
    assert clip.last.total_norm.item() == pytest.approx(0.003, rel=1e-2)


@pytest.mark.parametrize("max_norm", [0, -1.0, True, "0.05", {}])
def test_a_bad_threshold_is_refused_at_once(max_norm: Any) -> None:
    with pytest.raises(ThresholdError):
        ComponentClip(max_norm)


def test_a_pattern_that_fits_nothing_is_refused(arguments: Callable[..., TrainingArguments]) -> None:
    with pytest.raises(ThresholdError, match=r"names 'layer\.7"):
        train(_models.bert(), arguments(), ComponentClip({"layer.7.*": 0.1, "*": 1.0}))


# --- with an fp16 loss scale


SCALE = 2.0**10


def test_under_a_loss_scale_the_true_gradients_are_clipped(arguments: Callable[..., TrainingArguments]) -> None:
    ours, theirs = _models.bert(), _models.bert()
    recorder, raw = Recorder(every=1), []

    def collect(model: nn.Module, *_: object) -> None:
        raw.append(model.get_parameter("classifier.bias").grad.norm().item())  # type: ignore[union-attr]

    trainer, norms = train(ours, arguments(), ComponentClip(max_norm=MAX_NORM), Before(collect), recorder, scale=SCALE)
    expected = by_hand(theirs, max_norm=MAX_NORM)
    assert raw == pytest.approx([SCALE * step["classifier.bias"] for step in expected], rel=1e-3)  # scaling was active
    assert len(norms) == len(expected)
    assert norms[0] == pytest.approx(expected[0], rel=1e-4, abs=1e-7)
    recorded = [row["norm"] for row in recorder.telemetry.table().to_pylist()]
    assert recorded == [norm for step in norms for norm in step.values()]
    assert_same_weights(ours, theirs)
    assert trainer.accelerator.scaler.get_scale() == SCALE


def test_an_overflowed_step_is_skipped_and_training_goes_on(arguments: Callable[..., TrainingArguments]) -> None:
    def poison(model: nn.Module, _: object, step: int) -> None:
        if step == 2:
            model.get_parameter("classifier.bias").grad[0] = math.inf  # type: ignore[index]

    after: list[Tensor] = []
    trainer, norms = train(
        _models.bert(),
        arguments(),
        ComponentClip(max_norm=MAX_NORM),
        Before(poison),
        After(lambda model, *_: after.append(weights(model))),
        scale=SCALE,
    )
    changed = [not torch.equal(one, other) for one, other in itertools.pairwise(after)]
    assert changed == [True, False, True, True]  # the third step is the one that was poisoned
    assert all(vector.isfinite().all() for vector in after)
    assert not math.isfinite(norms[2]["classifier.bias"])
    assert all(math.isfinite(norm) for step in (0, 1, 3, 4) for norm in norms[step].values())
    assert trainer.accelerator.scaler.get_scale() == SCALE / 2  # the scaler noticed, in spite of the clipping


class Wrapped:
    """What Accelerate hands to the Trainer: an optimizer and the scaler."""

    def __init__(self, optimizer: torch.optim.Optimizer, scaler: Any) -> None:
        self.optimizer = optimizer
        self.scaler = scaler


def test_a_scale_is_divided_out_once_however_often_one_asks() -> None:
    model = nn.Linear(1, 1, bias=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    wrapped = Wrapped(torch.optim.SGD(model.parameters(), lr=0.1), scaler)
    scaler.scale(model(torch.ones(1)).sum()).backward()
    assert model.weight.grad is not None
    assert model.weight.grad.item() == 8.0
    for _ in range(3):
        unscale(wrapped)
        assert model.weight.grad.item() == 1.0


def test_what_else_the_scaler_says_is_not_hidden() -> None:
    model = nn.Linear(1, 1, bias=False)
    scaler = torch.amp.GradScaler("cpu")
    wrapped = Wrapped(torch.optim.SGD(model.parameters(), lr=0.1), scaler)
    scaler.scale(model(torch.ones(1)).sum()).backward()
    scaler.step(wrapped.optimizer)
    with pytest.raises(RuntimeError, match="after step"):
        unscale(wrapped)


@pytest.mark.parametrize("scaler", [None, torch.amp.GradScaler("cpu", enabled=False)])
def test_without_a_scale_nothing_is_divided(scaler: Any) -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.grad = torch.ones(1, 1)
    unscale(Wrapped(torch.optim.SGD(model.parameters(), lr=0.1), scaler))
    unscale(torch.optim.SGD(model.parameters(), lr=0.1))
    assert model.weight.grad.item() == 1.0
