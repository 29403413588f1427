"""The contract finds what breaks it: each test of it fails for a method made to fail it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final
from unittest import SkipTest

import pytest
import torch
from torch import Tensor, nn

from evenkeel.errors import MethodError
from evenkeel.methods import Batch, FullFineTuning, Method, Moment, Recipe, Session, Setting, Step
from evenkeel.testing import MethodContract


@final
@dataclass(frozen=True, kw_only=True)
class Pull(Method):
    """A user's own method, plain and right: a term pulls all weights to 0, by a random amount.

    Attributes:
        strength: how strongly.
    """

    name: ClassVar[str] = "pull"
    summary: ClassVar[str] = "a term that pulls all weights to 0"
    source: ClassVar[str] = "this test"

    strength: float = 0.1

    def begin(self, setting: Setting) -> Session:
        return _Pulling(self.strength, setting)


class _Pulling(Session):
    def __init__(self, strength: float, setting: Setting) -> None:
        self.strength, self.setting = strength, setting

    def loss_term(self, batch: Batch) -> Tensor | None:
        if not self.strength:
            return None
        drawn = torch.rand((), generator=batch.moment.generator("pull"))
        parameters = [parameter for part in self.setting.parts for parameter in part.parameters]
        return self.strength * drawn * torch.stack([parameter.square().mean() for parameter in parameters]).mean()


def contract(method: Method, neutral: Method | None = None, **special: Any) -> MethodContract:
    functions = {"make": lambda _: method, "neutral": lambda _: neutral}
    made: type[MethodContract] = type("TestMine", (MethodContract,), functions | special)
    return made()


TESTS = sorted(name for name, _ in inspect.getmembers(MethodContract) if name.startswith("test_"))
SLOW = {"test_saved_model_needs_no_evenkeel", *(name for name in TESTS if "_on_" in name)}


@pytest.mark.parametrize("test", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in TESTS])
def test_a_method_of_ones_own_passes(test: str) -> None:
    mine = contract(Pull(), Pull(strength=0.0), adds_up=False)
    if test == "test_micro_batches_add_up":
        with pytest.raises(SkipTest, match="draws"):
            getattr(mine, test)()
    else:
        getattr(mine, test)()


def broken(session: type[Session], **more: Any) -> Method:
    """Make a method whose sessions are of this class."""

    def begin(self: Method, setting: Setting) -> Session:
        made = session()
        made.model = setting.model  # type: ignore[attr-defined]
        return made

    names = {"name": "broken", "summary": "broken", "source": "this test", "begin": begin}
    made: Any = type("Broken", (Method,), {"__module__": __name__, **names, **more})
    return final(dataclass(frozen=True, kw_only=True)(made))()


class Modelled(Session):
    model: nn.Module


class LeavesAHook(Modelled):
    def start(self) -> None:
        next(self.model.children()).register_forward_hook(lambda *_: None)


class DrawsFromTheGlobalGenerator(Modelled):
    def before_step(self, step: Step) -> None:
        torch.rand(1)


class ForgetsItsState(Modelled):
    def __init__(self) -> None:
        self.steps = 0

    def before_step(self, step: Step) -> None:
        self.steps += 1
        for part in step.parts:
            for parameter in part.parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(1 / self.steps)


class GrowsTheLoss(Modelled):
    def before_step(self, step: Step) -> None:
        for part in step.parts:
            for parameter in part.parameters:
                if parameter.grad is not None:
                    parameter.grad.neg_()


class DoesNothing(Modelled):
    """Is full fine-tuning by another name."""


class SumsMicroBatches(Modelled):
    def loss_term(self, batch: Batch) -> Tensor | None:
        return batch.logits().square().sum()


class Unrepeatable(Modelled):
    drawn: ClassVar[list[int]] = []

    def before_forward(self, moment: Moment) -> None:
        self.drawn.append(1)

    def loss_term(self, batch: Batch) -> Tensor | None:
        return batch.logits().square().mean() * len(self.drawn) * 1e-3


class Overflows(Modelled):
    def loss_term(self, batch: Batch) -> Tensor | None:
        return batch.logits().sum() * math.inf


class Renames(Modelled):
    def finish(self) -> None:
        model: Any = self.model
        model.classifier = nn.Sequential(model.classifier)


class FrozenBehind(Modelled):
    def close(self) -> None:
        if hasattr(self, "model"):
            self.model.get_input_embeddings().weight.requires_grad_(False)  # type: ignore[operator,union-attr]


def fails(test: str, method: Method, said: str, neutral: Method | None = None, **special: Any) -> None:
    with pytest.raises(AssertionError, match=said):
        getattr(contract(method, neutral, **special), test)()


@pytest.mark.parametrize(
    ("test", "session", "said"),
    [
        ("test_core", LeavesAHook, "was left as"),
        ("test_core", GrowsTheLoss, "the loss went from"),
        ("test_core", DoesNothing, "it is full fine-tuning"),
        ("test_core", FrozenBehind, "was left as"),
        ("test_leaves_nothing_behind_after_an_exception", LeavesAHook, "was left as"),
        ("test_resumed_training_equals_an_uninterrupted_one", ForgetsItsState, "went on otherwise"),
        ("test_micro_batches_add_up", SumsMicroBatches, "not close"),
        ("test_same_seed_gives_the_same_weights", Unrepeatable, "gave other weights"),
        ("test_trains_in_bf16", Overflows, "not finite"),
        pytest.param("test_saved_model_needs_no_evenkeel", Renames, "not close", marks=pytest.mark.slow),
    ],
)
def test_what_breaks_the_contract_is_found(test: str, session: type[Session], said: str) -> None:
    fails(test, broken(session), said)


def test_a_neutral_setting_that_is_not_is_found() -> None:
    test = "test_neutral_setting_equals_its_twin"
    fails(test, Pull(), "drew from torch's global generator", broken(DrawsFromTheGlobalGenerator))
    fails(test, Pull(), "another training", Pull())
    with pytest.raises(SkipTest, match="no setting that does nothing"):
        getattr(contract(Pull()), test)()


def test_what_is_not_refused_is_found() -> None:
    fails("test_regression", Pull(), "regression was not refused", regression=False)
    fails("test_on_bert", Pull(), "bert was not refused", refused={"bert": "too small"})

    def check(self: Method, setting: Setting) -> None:
        raise MethodError("no")

    refusing = broken(DoesNothing, check=check)
    fails("test_on_bert", refusing, "does not fit", refused={"bert": "too small"})
    contract(refusing, refused={"bert": "no"}).test_on_bert()
    contract(refusing, regression=False).test_regression()


def test_configurations_that_are_none_are_found() -> None:
    test = "test_is_a_configuration"
    names: Mapping[str, Any] = {"name": "mine", "summary": "mine", "source": "this test"}
    plain: Any = type("Plain", (Method,), dict(names))
    fails(test, plain(), "no dataclass")
    fails(test, dataclass(kw_only=True)(type("Soft", (Method,), dict(names)))(), "not frozen")  # type: ignore[call-overload]
    for field, said in (("name", "no name for a plan"), ("summary", "one line"), ("source", "one line")):
        fails(test, broken(DoesNothing, **{field: "Two\nlines"}), said)


def test_the_recipe_of_full_lays_nothing_down() -> None:
    assert FullFineTuning().recipe() == Recipe()
