from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests import _models
from tests.integrations._training import DATA, EPSILON, assert_same_weights
from tests.methods._by_hand import STEPS, loss_of
from torch import Tensor, nn
from transformers import TrainingArguments

from evenkeel import components
from evenkeel.errors import MethodError, MissingExtraError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import ComponentClipping, Method, Mix, parse_mix
from evenkeel.methods.prodigy import Prodigy
from evenkeel.testing import MethodContract

prodigyopt = pytest.importorskip("prodigyopt", reason="the extra optimizers is not installed")

Arguments = Callable[..., TrainingArguments]


def trainer_of(model: nn.Module, args: TrainingArguments, *methods: Method, **more: Any) -> MethodTrainer:
    return MethodTrainer(model, args, methods=list(methods), train_dataset=DATA, **more)


EPOCHS = 3


def by_formula(
    model: nn.Module, *, d: float, coef: float, decay: float, rate: Callable[[float], float], safe: bool
) -> list[float]:
    """Train by the equations, and return the estimate after every step."""
    model.train()
    named = dict(model.named_parameters())
    begun = {name: one.detach().clone() for name, one in named.items()}
    m, v, s = ({name: torch.zeros_like(one) for name, one in named.items()} for _ in range(3))
    r, found, beta = 0.0, [], math.sqrt(0.999)
    for step in range(EPOCHS * STEPS):
        model.zero_grad()
        loss_of(model, step % STEPS).backward()
        eta = rate(step / (EPOCHS * STEPS))
        with torch.no_grad():
            trained: dict[str, Tensor] = {name: one.grad for name, one in named.items() if one.grad is not None}
            product = sum((g * (begun[name] - named[name])).sum().item() for name, g in trained.items())
            r = beta * r + eta * d**2 * product
            for name, g in trained.items():
                s[name] = beta * s[name] + (1.0 if safe else eta) * d**2 * g
                m[name] = 0.9 * m[name] + 0.1 * d * g
                v[name] = 0.999 * v[name] + 0.001 * d**2 * g**2
            total = sum(s[name].abs().sum().item() for name in trained)
            new = max(d, coef * r / total)
            for name in trained:
                decayed = 0.0 if name.endswith("bias") or "Norm" in name else decay
                named[name].sub_(eta * d * (m[name] / (v[name].sqrt() + new * EPSILON) + decayed * named[name]))
        d = new
        found.append(d)
    return found


@pytest.mark.parametrize(
    ("method", "schedule", "rate"),
    [
        (Prodigy(d0=1e-4, d_coef=8.0, lr=0.5), "linear", lambda share: 0.5 * (1 - share)),
        pytest.param(
            Prodigy(d0=1e-4, d_coef=8.0, safeguard_warmup=True),
            "cosine",
            lambda share: 0.5 * (1 + math.cos(math.pi * share)),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["linear", "safeguarded"],
)
def test_it_is_the_papers_algorithm(
    arguments: Arguments, method: Prodigy, schedule: str, rate: Callable[[float], float]
) -> None:
    ours, theirs = _models.bert().double(), _models.bert().double()
    args = arguments(weight_decay=0.1, lr_scheduler_type=schedule, num_train_epochs=EPOCHS)
    trainer = trainer_of(ours, args, method)
    trainer.train()
    estimates = by_formula(theirs, d=method.d0, coef=method.d_coef, decay=0.1, rate=rate, safe=method.safeguard_warmup)
    assert estimates[-1] > 2 * method.d0
    assert trainer.optimizer.param_groups[0]["d"] == pytest.approx(estimates[-1], rel=1e-8)
    assert_same_weights(ours, theirs, tolerance=1e-8)


def test_the_rate_is_a_factor_of_the_estimate_and_settings_are_the_trainings(arguments: Arguments) -> None:
    args = arguments(weight_decay=0.3, adam_beta1=0.8, adam_beta2=0.9)
    trainer = trainer_of(_models.bert(), args, Prodigy(d0=1e-3, d_coef=0.5, bias_correction=True))
    trainer.create_optimizer()
    made = trainer.optimizer
    assert isinstance(made, prodigyopt.Prodigy)
    assert [group["weight_decay"] for group in made.param_groups] == [0.3, 0.0]
    for group in made.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (1.0, (0.8, 0.9), EPSILON)
        assert (group["d0"], group["d_coef"], group["use_bias_correction"]) == (1e-3, 0.5, True)
    assert trainer.args.learning_rate == 1.0
    assert args.learning_rate != 1.0  # the user's own are left alone


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_a_method_that_clips_decides_clipping(order: slice) -> None:
    parts = components(_models.bert())
    assert Mix((Prodigy(), ComponentClipping(max_norm=0.01))[order]).clipping(parts).max_norm == 0.01
    assert Mix((Prodigy(),)).clipping(parts).max_norm == math.inf


@pytest.mark.parametrize(
    ("mix", "said"),
    [
        ("prodigy+llrd", "one learning rate for all components"),
        ("prodigy+gradual-unfreezing", "empty the optimizer's state"),
        ("prodigy+decay-to-pretrained", "a factor of an estimate"),
        ("prodigy+stable-adamw", "each decides how the optimizer updates weights"),
        ("prodigy+bert-adam", "each decides how the optimizer updates weights"),
        ("prodigy+mosbach:learning_rate=1e-5", "each lays down the training's learning_rate"),
    ],
)
def test_mixes_that_cannot_be(mix: str, said: str) -> None:
    with pytest.raises(MethodError, match=said):
        parse_mix(mix)


def test_an_optimizer_of_several_rates_is_refused() -> None:
    one, other = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    with pytest.raises(MethodError, match=r"this training has 2, from 0\.1 to 0\.2; give all"):
        Prodigy().optimizer(torch.optim.AdamW([{"params": [one], "lr": 0.2}, {"params": [other], "lr": 0.1}]))
    with pytest.raises(MethodError, match="this training has SGD; set TrainingArguments"):
        Prodigy().optimizer(torch.optim.SGD([one]))


def test_stepping_in_backward_is_refused(arguments: Arguments) -> None:
    with pytest.raises(MethodError, match=r"prodigy steps all parameters together, .* leave in_backward out"):
        trainer_of(_models.bert(), arguments(), Prodigy(), in_backward=True)


def test_sharded_parameters_are_refused(arguments: Arguments) -> None:
    args = arguments()
    args.fsdp = ["full_shard"]
    with pytest.raises(MethodError, match="prodigy acts on whole parameters, and FSDP shards them"):
        trainer_of(_models.bert(), args, Prodigy())


def test_without_the_package_the_extra_is_named(arguments: Arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'evenkeel\[optimizers\]'"):
        trainer_of(_models.bert(), arguments(), Prodigy())


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *((name, [0, -1, math.inf, math.nan, None, "1", True]) for name in ("lr", "d_coef", "d0")),
        *((name, [None, 1, "yes"]) for name in ("bias_correction", "safeguard_warmup")),
    ],
)
def test_what_cannot_be_is_refused(name: str, bad: list[Any]) -> None:
    for value in bad:
        with pytest.raises(MethodError, match=rf"prodigy: {name} must be .*, but got .*; "):
            Prodigy(**{name: value})


class TestProdigyContract(MethodContract):
    def make(self) -> Method:
        return Prodigy(d0=1e-3)
