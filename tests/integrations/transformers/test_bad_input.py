"""What must not happen silently: two callbacks that clip, a model that changes, an untested version."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from tests import _models
from tests.integrations._training import DATA, After, assert_same_weights
from torch import nn
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from evenkeel.errors import GradientError
from evenkeel.integrations._tested import TESTED, warn_untested
from evenkeel.integrations.transformers import ComponentClip, MethodTrainer

Arguments = Callable[..., TrainingArguments]


# --- added twice


def test_two_callbacks_that_clip_are_refused_before_anything_is_trained(arguments: Arguments) -> None:
    model, before = _models.bert(), _models.bert()
    trainer = Trainer(model, arguments(), train_dataset=DATA, callbacks=[ComponentClip(0.1), ComponentClip(0.05)])
    with pytest.raises(GradientError, match=r"has 2 callbacks that clip \(ComponentClip, ComponentClip\).*keep one"):
        trainer.train()
    assert_same_weights(model, before, tolerance=0)


def test_one_callback_added_twice_is_refused(arguments: Arguments) -> None:
    clip = ComponentClip(0.1)
    with pytest.raises(GradientError, match="has 2 callbacks that clip"):
        Trainer(_models.bert(), arguments(), train_dataset=DATA, callbacks=[clip, clip]).train()


def test_one_that_was_added_to_a_method_trainer_later_is_refused(arguments: Arguments) -> None:
    trainer = MethodTrainer(_models.bert(), arguments(), methods=["component-clip"], train_dataset=DATA)
    trainer.add_callback(ComponentClip(0.1))
    with pytest.raises(GradientError, match="none in a MethodTrainer"):
        trainer.train()


def test_deepspeed_is_refused_since_it_steps_in_backward(arguments: Arguments) -> None:
    trainer = Trainer(_models.bert(), arguments(), train_dataset=DATA, callbacks=[ComponentClip(0.1)])
    trainer.args.deepspeed = {"zero_optimization": {"stage": 2}}  # set late: without DeepSpeed the Trainer has none
    with pytest.raises(GradientError, match="under DeepSpeed backward also makes the step"):
        trainer.train()


# --- a model that changes under its eyes


def adapted(model: nn.Module) -> Any:
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["query", "value"], r=2))


def test_layers_that_are_released_are_clipped_from_then_on(arguments: Arguments) -> None:
    model = _models.bert()
    model.bert.requires_grad_(False)
    clip, seen = ComponentClip(0.02), []

    def release(_: nn.Module, __: object, step: int) -> None:
        assert clip.last is not None
        seen.append(len(clip.last.names))
        model.bert.pooler.requires_grad_(step > 1)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(
        model,
        arguments(max_steps=4),
        train_dataset=DATA,
        callbacks=[clip, After(release)],
        optimizers=(optimizer, None),
    )
    trainer.train()
    assert seen == [2, 2, 4, 4]


def step(clip: ComponentClip, model: nn.Module, args: TrainingArguments) -> tuple[str, ...]:
    """One optimizer step of a loop that calls callbacks by itself."""
    data = DATA.ids[:4]
    model.zero_grad()
    nn.functional.cross_entropy(model(input_ids=data).logits, data[:, 0] % 2).backward()
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.0)
    clip.on_pre_optimizer_step(args, TrainerState(), TrainerControl(), model=model, optimizer=optimizer)
    assert clip.last is not None
    return clip.last.names


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT asks for it
def test_adapters_that_come_and_are_merged_are_looked_at_again(arguments: Arguments) -> None:
    model, clip, args = _models.bert(), ComponentClip(1e-3), arguments()
    plain = step(clip, model, args)
    with_adapters = adapted(model)
    names = step(clip, model, args)  # the same object, in which layers were replaced
    assert len(names) == 8
    assert all("lora_" in name for name in names)
    assert clip.last is not None
    assert clip.last.norms[1] > 0
    merged = with_adapters.merge_and_unload()  # which leaves all frozen
    assert step(clip, merged.requires_grad_(True), args) == plain


def test_another_model_is_looked_at(arguments: Arguments) -> None:
    clip, args = ComponentClip(1e-3), arguments()
    assert len(step(clip, _models.bert(2), args)) == 41
    assert len(step(clip, _models.bert(3), args)) == 57


# --- versions


def pretend(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """Let ``version`` be installed of everything, as far as we look."""
    told = SimpleNamespace(version=lambda _: version, PackageNotFoundError=PackageNotFoundError)
    monkeypatch.setattr("evenkeel.integrations._tested.metadata", told)


@pytest.fixture
def anew() -> Iterator[None]:
    warn_untested.cache_clear()
    yield
    warn_untested.cache_clear()


@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize("version", ["4.57.1", "6.0.0.dev0", "5.999"])
def test_an_untested_version_is_warned_of_once(
    arguments: Arguments, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, version)
    trainer = Trainer(_models.bert(), arguments(max_steps=1), train_dataset=DATA, callbacks=[ComponentClip()])
    said = rf"transformers {version} is installed, .* tested with transformers {TESTED['transformers'][0]}"
    with pytest.warns(UserWarning, match=said):
        trainer.train()
    trainer.train()  # a second warning would be an error here


@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize("framework", TESTED)
def test_tested_and_absent_versions_are_no_matter(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in TESTED[framework]:
        pretend(monkeypatch, f"{version}.7")
        warn_untested(framework)
        warn_untested.cache_clear()
    monkeypatch.undo()
    warn_untested(framework)  # the one that is pinned, or none


@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize("framework", TESTED)
def test_what_is_pinned_counts_as_tested(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (Path(__file__).parents[3] / "constraints.txt").read_text(encoding="utf-8").splitlines()
    (pin,) = (line.partition("==")[2] for line in lines if line.partition("==")[0] == framework)
    pretend(monkeypatch, pin)
    warn_untested(framework)  # a warning would be an error
