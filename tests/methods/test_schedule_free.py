from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests import _models
from tests.integrations._training import BATCH, DATA, EPSILON, RATE, After, Before, assert_same_weights, weights
from tests.methods._by_hand import STEPS, loss_of
from torch import Tensor, nn
from transformers import TrainingArguments

from evenkeel import components
from evenkeel.errors import MethodError, MissingExtraError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import ComponentClipping, Method, Mix, parse_mix
from evenkeel.methods.schedule_free import ScheduleFree
from evenkeel.testing import MethodContract

schedulefree = pytest.importorskip("schedulefree", reason="the extra optimizers is not installed")

Arguments = Callable[..., TrainingArguments]


def trainer_of(model: nn.Module, args: TrainingArguments, *methods: Method, **more: Any) -> MethodTrainer:
    return MethodTrainer(model, args, methods=list(methods or [ScheduleFree()]), train_dataset=DATA, **more)


def by_formula(model: nn.Module, *, warmup: int, decay: float = 0.0) -> list[dict[str, Tensor]]:
    """Train by the equations; return the average before and after every step."""
    model.train()
    named = dict(model.named_parameters())
    z, x = ({name: one.detach().clone() for name, one in named.items()} for _ in range(2))
    v = {name: torch.zeros_like(one) for name, one in named.items()}
    rates: list[float] = []
    found = [x]
    for step in range(1, STEPS + 1):
        with torch.no_grad():
            for name, one in named.items():
                one.copy_(0.1 * z[name] + 0.9 * x[name])
        model.zero_grad()
        loss_of(model, step - 1).backward()
        rates.append(RATE * min(1.0, step / warmup) if warmup else RATE)
        share = rates[-1] ** 2 / sum(rate**2 for rate in rates)
        x = dict(x)
        with torch.no_grad():
            for name, y in named.items():
                if y.grad is None:
                    continue
                v[name] = 0.999 * v[name] + 0.001 * y.grad**2
                direction = y.grad / ((v[name] / (1 - 0.999**step)).sqrt() + EPSILON)
                decayed = 0.0 if name.endswith("bias") or "Norm" in name else decay
                z[name] = z[name] - rates[-1] * (direction + decayed * y)
                x[name] = (1 - share) * x[name] + share * z[name]
        found.append(x)
    return found


def vector(named: dict[str, Tensor]) -> Tensor:
    return torch.cat([one.detach().flatten() for one in named.values()])


@pytest.mark.parametrize(("share", "steps"), [pytest.param(0.0, 0, marks=pytest.mark.slow), (0.5, 3)])
def test_it_is_the_papers_algorithm_and_the_average_is_the_result(
    arguments: Arguments, share: float, steps: int
) -> None:
    ours, theirs = _models.bert().double(), _models.bert().double()
    trainer = trainer_of(ours, arguments(weight_decay=0.1), ScheduleFree(warmup=share))
    trainer.train()
    averages = by_formula(theirs, warmup=steps, decay=0.1)
    torch.testing.assert_close(weights(ours), vector(averages[-1]), rtol=0, atol=1e-9)
    assert isinstance(trainer.optimizer.optimizer, schedulefree.AdamWScheduleFree)


def test_evaluations_and_checkpoints_have_the_average_and_gradients_are_taken_elsewhere(
    arguments: Arguments, tmp_path: Path
) -> None:
    ours, theirs = _models.bert().double(), _models.bert().double()
    evaluated: list[Tensor] = []
    between: list[Tensor] = []
    graded: list[Tensor] = []
    ours.register_forward_pre_hook(lambda module, _: None if module.training else evaluated.append(weights(ours)))
    args = arguments(
        eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=len(DATA), save_strategy="steps", save_steps=2
    )
    before = Before(lambda *_: graded.append(weights(ours)))
    after = After(lambda *_: between.append(weights(ours)))
    method = ScheduleFree(warmup=0.0)
    trainer = trainer_of(ours, args, method, eval_dataset=DATA, callbacks=[before, after])
    trainer.train()
    averages = [vector(one) for one in by_formula(theirs, warmup=0)]
    assert len(evaluated) == len(between) == STEPS
    for step in range(STEPS):
        torch.testing.assert_close(evaluated[step], averages[step + 1], rtol=0, atol=1e-9)
        torch.testing.assert_close(between[step], averages[step + 1], rtol=0, atol=1e-9)
    assert (graded[-1] - averages[-2]).abs().max() > 1e-3
    held = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    kept = torch.cat([held[name].flatten() for name, _ in ours.named_parameters()])
    torch.testing.assert_close(kept, averages[2], rtol=0, atol=1e-9)
    trainer.save_model(str(tmp_path / "result"))
    result = load_file(tmp_path / "result" / "model.safetensors")
    assert all(torch.equal(result[name], one) for name, one in ours.named_parameters())


@pytest.mark.slow
def test_the_best_of_several_evaluations_is_an_average(arguments: Arguments) -> None:
    ours, theirs = _models.bert().double(), _models.bert().double()
    args = arguments(
        eval_strategy="steps", save_strategy="steps", save_steps=1, eval_steps=1, load_best_model_at_end=True
    )
    trainer = trainer_of(ours, args, ScheduleFree(warmup=0.0), eval_dataset=DATA)
    trainer.train()
    best = int(str(trainer.state.best_model_checkpoint).rpartition("-")[2])
    averages = by_formula(theirs, warmup=0)
    torch.testing.assert_close(weights(ours), vector(averages[best]), rtol=0, atol=1e-9)


def test_the_rate_is_constant_and_the_warm_up_the_optimizers_own(arguments: Arguments) -> None:
    args = arguments(lr_scheduler_type="linear", warmup_steps=3, logging_steps=1)
    trainer = trainer_of(_models.bert(), args, ScheduleFree(warmup=0.5))
    scheduled: list[float] = []
    trainer.add_callback(After(lambda _, optimizer, step: scheduled.append(optimizer.param_groups[0]["scheduled_lr"])))
    trainer.train()
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert logged == pytest.approx([RATE] * STEPS)
    assert scheduled == pytest.approx([RATE / 3, 2 * RATE / 3, RATE, RATE, RATE])


@pytest.mark.slow
def test_accumulated_micro_batches_are_taken_at_the_same_weights(arguments: Arguments) -> None:
    plain, model = _models.bert().double(), _models.bert().double()
    trainer_of(plain, arguments()).train()
    trainer_of(model, arguments(per_device_train_batch_size=BATCH // 2, gradient_accumulation_steps=2)).train()
    assert_same_weights(model, plain, tolerance=1e-9)


@pytest.mark.slow
def test_a_trainer_trains_twice(arguments: Arguments) -> None:
    model = _models.bert()
    trainer = trainer_of(model, arguments())
    trainer.train()
    first = weights(model)
    trainer.train()
    assert weights(model).isfinite().all()
    assert not torch.equal(weights(model), first)


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_a_method_that_clips_decides_clipping(order: slice) -> None:
    parts = components(_models.bert())
    assert Mix((ScheduleFree(), ComponentClipping(max_norm=0.01))[order]).clipping(parts).max_norm == 0.01
    assert Mix((ScheduleFree(),)).clipping(parts).max_norm == math.inf


@pytest.mark.parametrize(
    ("mix", "said"),
    [
        ("schedule-free+ema", "an average of its own"),
        ("swa+schedule-free", "an average of its own"),
        ("schedule-free+gradual-unfreezing", "empty the optimizer's state"),
        ("schedule-free+decay-to-pretrained", "moves weights before the step"),
        ("schedule-free+prodigy", "each decides how the optimizer updates weights"),
        ("schedule-free+warmup", "each lays down the training's schedule and warmup"),
        ("schedule-free+mosbach:warmup=null", "each lays down the training's schedule"),
    ],
)
def test_mixes_that_cannot_be(mix: str, said: str) -> None:
    with pytest.raises(MethodError, match=said):
        parse_mix(mix)


@pytest.mark.slow
@pytest.mark.parametrize("mix", ["llrd", "sam", "lora", "mixout", "component-clip", "child-tuning-f"])
def test_mixes_that_can_be(arguments: Arguments, mix: str) -> None:
    if mix == "lora":
        pytest.importorskip("peft")
    model = _models.bert()
    before = weights(model)
    methods = list(parse_mix(f"schedule-free+{mix}").methods)
    trainer_of(model, arguments(max_steps=2), *methods).train()
    assert weights(model).isfinite().all()
    assert not torch.equal(weights(model), before)


def test_stepping_in_backward_is_refused(arguments: Arguments) -> None:
    with pytest.raises(MethodError, match=r"schedule-free steps all parameters together, .* leave in_backward out"):
        trainer_of(_models.bert(), arguments(), in_backward=True)


def test_what_leaves_no_average_is_refused(arguments: Arguments) -> None:
    with pytest.raises(MethodError, match="first beta of 0 .*adam_beta1=0.9"):
        trainer_of(_models.bert(), arguments(adam_beta1=0.0)).create_optimizer()
    with pytest.raises(MethodError, match=r"'bert.embeddings.word_embeddings.weight' is torch.bfloat16, .*float32"):
        trainer_of(_models.bert().bfloat16(), arguments()).train()
    with pytest.raises(MethodError, match="this training has SGD; set TrainingArguments"):
        ScheduleFree().optimizer(torch.optim.SGD([nn.Parameter(torch.zeros(1))]))


def test_sharded_parameters_are_refused(arguments: Arguments) -> None:
    args = arguments()
    args.fsdp = ["full_shard"]
    with pytest.raises(MethodError, match="schedule-free acts on whole parameters, and FSDP shards them"):
        trainer_of(_models.bert(), args)


def test_without_the_package_the_extra_is_named(arguments: Arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'evenkeel\[optimizers\]'"):
        trainer_of(_models.bert(), arguments())


@pytest.mark.parametrize("value", [1, 2, -0.1, math.inf, math.nan, None, "0.1", True])
def test_what_cannot_be_is_refused(value: Any) -> None:
    with pytest.raises(MethodError, match=r"schedule-free: warmup must be .*, but got .*; "):
        ScheduleFree(warmup=value)


class TestScheduleFreeContract(MethodContract):
    def make(self) -> Method:
        return ScheduleFree()
