from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from tests import _models
from tests.integrations._training import BATCH, DATA, RATE, assert_same_weights
from torch.optim import AdamW
from transformers import SchedulerType, Trainer, TrainingArguments

from evenkeel import components
from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import FullFineTuning, Method, Recipe, parse_method, parse_mix
from evenkeel.methods.mosbach import Mosbach
from evenkeel.optim import ClippedAdamW
from evenkeel.testing import MethodContract

Arguments = Callable[..., TrainingArguments]


def test_it_is_the_trainer_with_these_arguments(arguments: Arguments) -> None:
    ours, theirs = _models.bert(), _models.bert()
    trainer = MethodTrainer(ours, arguments(), methods=["mosbach:epochs=2"], train_dataset=DATA)
    trainer.train()
    args = arguments(
        num_train_epochs=2,
        warmup_steps=0.1,
        lr_scheduler_type="linear",
        weight_decay=0.01,
        adam_epsilon=1e-6,
        max_grad_norm=1.0,
    )
    Trainer(theirs, args, train_dataset=DATA).train()
    # With this epsilon, what is zero but for rounding moves: the biases of keys, to which the model is indifferent.
    for model in (ours, theirs):
        for block in model.bert.encoder.layer:
            block.attention.self.key.bias.data.zero_()
    assert_same_weights(ours, theirs, tolerance=1e-4)
    assert isinstance(trainer.optimizer.optimizer, AdamW)


def test_the_defaults_are_the_papers_and_the_learning_rate_is_the_trainings(arguments: Arguments) -> None:
    args = MethodTrainer(_models.bert(), arguments(), methods=[Mosbach()], train_dataset=DATA).args
    assert (args.num_train_epochs, args.warmup_steps, args.weight_decay, args.adam_epsilon) == (20, 0.1, 0.01, 1e-6)
    assert (args.lr_scheduler_type, args.learning_rate) == (SchedulerType.LINEAR, RATE)
    clipping = Mosbach().clipping(components(_models.bert()))
    assert (clipping.max_norm, len(clipping.parts)) == (1.0, 1)


def test_every_setting_is_an_option_and_none_leaves_it_to_the_training(arguments: Arguments) -> None:
    given = parse_method(
        "mosbach:epochs=3:learning_rate=1e-4:warmup=0.2:schedule=cosine:weight_decay=0.5:eps=1e-4:correct_bias=false"
    )
    assert given.recipe() == Recipe(
        epochs=3,
        learning_rate=1e-4,
        warmup=0.2,
        schedule="cosine",
        weight_decay=0.5,
        eps=1e-4,
        correct_bias=False,
    )
    nothing = parse_method("mosbach:epochs=null:warmup=null:schedule=null:weight_decay=null:eps=null")
    assert nothing.recipe() == Recipe(correct_bias=True)
    trainer = MethodTrainer(_models.bert(), arguments(max_steps=1), methods=[given], train_dataset=DATA)
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, ClippedAdamW)
    assert trainer.args.learning_rate == 1e-4


def test_a_constant_rate_is_warmed_up_too(arguments: Arguments) -> None:
    method = Mosbach(epochs=1, warmup=0.4, schedule="constant")
    trainer = MethodTrainer(_models.bert(), arguments(logging_steps=1), methods=[method], train_dataset=DATA)
    trainer.train()
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert len(DATA) == 5 * BATCH
    assert logged == pytest.approx([0, RATE / 2, RATE, RATE, RATE])


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("epochs", [0, -1, math.inf, math.nan, "20", True, [1]]),
        ("learning_rate", [0, -1e-5, math.inf, "high", True]),
        ("warmup", [1, 2, -0.1, math.nan, "long"]),
        ("weight_decay", [-0.1, math.inf, math.nan, "a"]),
        ("eps", [0, -1e-8, math.inf, math.nan]),
        ("correct_bias", [None, 0, 1, "yes"]),
        ("max_norm", [0, -1, math.nan, None, "1", {"query": 1.0}]),
    ],
)
def test_what_cannot_be_is_refused(name: str, bad: list[Any]) -> None:
    for value in bad:
        with pytest.raises(MethodError, match=rf"mosbach: {name} must be .*, but got .*; "):
            Mosbach(**{name: value})


def test_schedules_are_the_trainers() -> None:
    with pytest.raises(MethodError, match="unknown schedule of mosbach 'lineare': did you mean 'linear'"):
        Mosbach(schedule="lineare")  # type: ignore[arg-type]


@pytest.mark.parametrize("other", ["full", "component-clip", "bert-adam", "warmup"])
def test_what_decides_the_same_is_no_company(other: str) -> None:
    with pytest.raises(MethodError, match=f"mosbach and {other} cannot be mixed"):
        parse_mix(f"mosbach+{other}")


class TestMosbachContract(MethodContract):
    def make(self) -> Method:
        return Mosbach(warmup=0.5, eps=1e-3)

    def neutral(self) -> Method:
        return Mosbach(epochs=None, warmup=None, weight_decay=None, eps=None)

    def twin(self) -> tuple[Method]:
        return (FullFineTuning(),)
