from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from tests import _models
from tests.integrations._training import DATA, weights
from torch import nn
from transformers import TrainingArguments

from evenkeel import Components, components
from evenkeel.errors import MethodError, ThresholdError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import (
    ComponentClipping,
    FullFineTuning,
    GradualUnfreezing,
    Method,
    Mix,
    Phase,
    Recipe,
    Session,
    Setting,
)
from evenkeel.methods._contract import Owned, Touched
from evenkeel.methods.head_only import HeadOnly
from evenkeel.methods.llrd import LayerWiseDecay
from evenkeel.methods.lnsr import LNSR


def setting(model: nn.Module) -> Setting:
    return Setting(model=model, parts=components(model))


@dataclass(frozen=True, kw_only=True)
class Lays(Method):
    """Lays settings down."""

    name: ClassVar[str] = "lays"

    epochs: float | None = None
    warmup: float | None = None
    weight_decay: float | None = None
    eps: float | None = None
    correct_bias: bool | None = None

    def recipe(self) -> Recipe:
        return Recipe(**dataclasses.asdict(self))


class Lays2(Lays):
    name: ClassVar[str] = "lays2"


@dataclass(frozen=True)
class Acts(Method):
    """Owns what it is told to, and tells what happens to it."""

    name: ClassVar[str] = "acts"
    touches: ClassVar[frozenset[Touched]] = frozenset({"weights", "gradients"})

    owned: Owned
    told: list[str] = field(default_factory=list)
    refuses: bool = False
    breaks: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "owns", frozenset({self.owned}))

    def check(self, setting: Setting) -> None:
        if self.refuses:
            raise MethodError(f"{self.name} wants nothing")

    def begin(self, setting: Setting) -> Session:
        if self.breaks:
            raise RuntimeError(f"{self.name} breaks")
        self.told.append(f"{self.name} begins")
        return Tells(self.name, self.told)

    def phases(self, parts: Components) -> tuple[Phase, ...]:
        return (Phase(name="all", trainable=lambda _: True),)

    def rates(self, parts: Components) -> dict[str, float]:
        return {"everything": 0.5}

    def optimizer(self, plain: torch.optim.Optimizer) -> torch.optim.Optimizer:
        return torch.optim.SGD(plain.param_groups, lr=0.1)


class ActsToo(Acts):
    name: ClassVar[str] = "acts-too"
    touches: ClassVar[frozenset[Touched]] = frozenset({"weights", "result"})


@dataclass(frozen=True, kw_only=True)
class Hostile(Method):
    name: ClassVar[str] = "hostile"
    touches: ClassVar[frozenset[Touched]] = frozenset({"forward"})
    conflicts: ClassVar[Mapping[str, str]] = {"lays": "it does not like what is laid down"}


@dataclass(frozen=True, kw_only=True)
class Defers(Method):
    name: ClassVar[str] = "defers"
    otherwise: ClassVar[frozenset[Owned]] = frozenset({"clipping"})


class Tells(Session):
    def __init__(self, name: str, told: list[str]) -> None:
        self.name, self.told = name, told

    def close(self) -> None:
        self.told.append(f"{self.name} closes")

    def state_dict(self) -> dict[str, Any]:
        return {"of": self.name}


# --- mixes of real methods


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        (
            (FullFineTuning(), ComponentClipping()),
            r"full and component-clip .* how gradients are clipped; .*\(full,component-clip\)",
        ),
        ((ComponentClipping(), ComponentClipping(max_norm=1.0)), "component-clip and component-clip cannot be mixed"),
        ((HeadOnly(), LayerWiseDecay()), "head-only and llrd cannot be mixed: head and pooler, .* same learning rate"),
        ((LNSR(), HeadOnly()), "lnsr and head-only cannot be mixed: it freezes the blocks"),
        ((GradualUnfreezing(), FullFineTuning(), GradualUnfreezing(epochs=1)), "they are the same method"),
        (
            (GradualUnfreezing(), FullFineTuning(), Acts("phases")),
            "gradual-unfreezing and acts .* what is trained when",
        ),
        ((), "at least one method"),
        ((FullFineTuning,), r"is no method; give one of its class, such as FullFineTuning\(\), or its name"),
        ((FullFineTuning(), None), "None is no method"),
        (("full",), "'full' is no method"),
    ],
)
def test_methods_that_decide_the_same_cannot_be_mixed(methods: Sequence[Any], said: str) -> None:
    with pytest.raises(MethodError, match=said):
        Mix(methods)


@pytest.mark.parametrize(
    ("methods", "own"),
    [
        ((GradualUnfreezing(),), FullFineTuning()),  # nobody decides: as in full
        ((GradualUnfreezing(), ComponentClipping(max_norm=0.01)), ComponentClipping(max_norm=0.01)),
        ((FullFineTuning(max_norm=0.2), GradualUnfreezing()), FullFineTuning(max_norm=0.2)),
    ],
)
def test_clipping_is_its_owners(methods: Sequence[Method], own: Method) -> None:
    mixed, alone = _models.bert(), _models.bert()
    for model in (mixed, alone):
        _models.backward(model)
    result = Mix(methods).clipping(components(mixed)).clip()
    assert result.names == own.clipping(components(alone)).clip().names
    for mine, other in zip(mixed.parameters(), alone.parameters(), strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        assert torch.equal(mine.grad, other.grad)


def test_full_is_torchs_clipping_at_one() -> None:
    ours, theirs = _models.bert(), _models.bert()
    for model in (ours, theirs):
        _models.backward(model)
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad *= 100
    result = FullFineTuning().clipping(components(ours)).clip()
    total = nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
    torch.testing.assert_close(result.total_norm, total)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("by", "count"), [("tensor", 41), ("layer", 3), ("global", 1)])
def test_component_clipping_groups_as_told(by: str, count: int) -> None:
    model = _models.bert()
    _models.backward(model)
    result = ComponentClipping(max_norm=0.1, by=by).clipping(components(model)).clip()  # type: ignore[arg-type]
    assert len(result.norms) == count
    assert result.thresholds.tolist() == pytest.approx([0.1] * count)


def test_phases_are_their_owners_and_else_one_of_everything() -> None:
    parts = components(_models.bert(3))
    (only,) = Mix([ComponentClipping()]).phases(parts)
    assert only.epochs is None
    assert all(only.trainable(part) for part in parts)
    mixed = Mix((ComponentClipping(), GradualUnfreezing(epochs=2))).phases(parts)
    assert mixed == GradualUnfreezing(epochs=2).phases(parts)


def test_a_method_does_nothing_that_it_does_not_own() -> None:
    parts = components(_models.bert())
    with pytest.raises(NotImplementedError, match="FullFineTuning does not own the phases"):
        FullFineTuning().phases(parts)
    with pytest.raises(NotImplementedError, match="GradualUnfreezing does not own the clipping"):
        GradualUnfreezing().clipping(parts)


def test_thresholds_are_checked_against_the_whole_model_and_then_apply_to_what_is_trained() -> None:
    model = _models.bert()
    mix = Mix((ComponentClipping(max_norm={"embedding": 1e-9, "*": 1e9}), GradualUnfreezing()))
    mix.check(setting(model))  # embeddings are there, though frozen at first
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("embeddings" not in name)
    _models.backward(model)
    assert set(mix.clipping(components(model)).clip().coefficients.tolist()) == {1.0}
    with pytest.raises(ThresholdError, match="'qeury', which is the role or path of no component"):
        Mix((ComponentClipping(max_norm={"qeury": 1.0, "*": 1.0}),)).check(setting(model))


# --- recipes


def test_what_methods_lay_down_is_put_together() -> None:
    mix = Mix([Lays(epochs=3.0, warmup=0.1), ComponentClipping(), Lays2(eps=1e-7, correct_bias=False)])
    assert mix.recipe() == Recipe(epochs=3.0, warmup=0.1, eps=1e-7, correct_bias=False)
    assert Mix([FullFineTuning()]).recipe() == Recipe()


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({"epochs": 3.0}, {"epochs": 3.0}, "the training's epochs"),  # alike or not
        ({"epochs": 3.0, "eps": 1e-6}, {"eps": 1e-7, "epochs": 1.0}, "the training's epochs and eps"),
        ({"correct_bias": True}, {"correct_bias": False}, "the training's correct_bias"),
        ({"weight_decay": 0.0}, {"weight_decay": 0.1}, "the training's weight_decay"),  # 0 is laid down as well
    ],
)
def test_one_setting_is_laid_down_once(one: dict[str, Any], other: dict[str, Any], said: str) -> None:
    with pytest.raises(MethodError, match=f"lays and lays2 cannot be mixed: each lays down {said}; keep one of them"):
        Mix([Lays(**one), Lays2(**other)])


def test_an_update_of_ones_own_leaves_no_room_for_another_adams() -> None:
    Mix([Acts("update"), Lays(correct_bias=True)])
    for methods in ([Acts("update"), Lays(correct_bias=False)], [Lays(correct_bias=False), Acts("update")]):
        with pytest.raises(MethodError, match="each decides how the optimizer updates weights"):
            Mix(methods)


# --- who decides, who acts


@pytest.mark.parametrize("owned", ["clipping", "phases", "rates", "update", "second pass"])
def test_what_two_own_cannot_be_decided(owned: Owned) -> None:
    mix = Mix([Acts(owned), Lays()])
    assert mix.owner(owned) == Acts(owned)
    assert Mix([Lays()]).owner(owned) is None
    with pytest.raises(MethodError, match="acts and acts-too cannot be mixed: each decides"):
        Mix([Acts(owned), ActsToo(owned)])


def test_what_one_decides_otherwise_another_may_own() -> None:
    clips = ComponentClipping()
    for methods in ([Defers(), clips], [clips, Defers()]):
        assert Mix(methods).owner("clipping") is clips
    assert Mix([Defers()]).owner("clipping") == Defers()


@pytest.mark.parametrize("methods", [(Hostile, Lays), (Lays, Hostile)])
def test_enemies_are_told_why_whoever_names_the_other(methods: Sequence[type[Method]]) -> None:
    with pytest.raises(MethodError, match="cannot be mixed: it does not like what is laid down; keep one of them"):
        Mix([method() for method in methods])
    Mix([Hostile(), FullFineTuning()])


def test_what_is_touched_names_the_first_that_does() -> None:
    assert Mix([FullFineTuning()]).touches == {}
    mix = Mix([FullFineTuning(), Acts("rates"), ActsToo("phases"), Hostile()])
    assert mix.touches == {"weights": "acts", "gradients": "acts", "result": "acts-too", "forward": "hostile"}


def test_those_act_that_begin_something() -> None:
    assert Mix([FullFineTuning(), GradualUnfreezing()]).acting == ()
    assert Mix([ActsToo("rates"), FullFineTuning(), Acts("phases")]).acting == ("acts-too", "acts")


def test_learning_rates_and_update_are_their_owners_and_else_nobodys() -> None:
    parts = components(_models.bert())
    plain = torch.optim.AdamW(_models.bert().parameters())
    assert Mix([FullFineTuning()]).rates(parts) == {}
    assert Mix([FullFineTuning()]).optimizer(plain) is plain
    assert Mix([Acts("rates"), FullFineTuning()]).rates(parts) == {"everything": 0.5}
    made = Mix([Acts("update"), FullFineTuning()]).optimizer(plain)
    assert isinstance(made, torch.optim.SGD)
    with pytest.raises(NotImplementedError, match="FullFineTuning does not own learning rates"):
        FullFineTuning().rates(parts)
    with pytest.raises(NotImplementedError, match="FullFineTuning does not own the optimizer's update"):
        FullFineTuning().optimizer(plain)


# --- checking and beginning


def test_every_method_and_the_phases_are_checked() -> None:
    with pytest.raises(MethodError, match="at least 2 blocks"):
        Mix([FullFineTuning(), GradualUnfreezing()]).check(setting(_models.bert(1)))
    with pytest.raises(MethodError, match="acts wants nothing"):
        Mix([FullFineTuning(), Acts("rates", refuses=True)]).check(setting(_models.bert()))


def test_sessions_are_of_those_that_act_in_order() -> None:
    told: list[str] = []
    mix = Mix([Acts("rates", told=told), FullFineTuning(), ActsToo("phases", told=told)])
    sessions = mix.begin(setting(_models.bert()))
    assert told == ["acts begins", "acts-too begins"]
    assert sessions.state_dict() == {"acts": {"of": "acts"}, "acts-too": {"of": "acts-too"}}
    sessions.close()
    assert told[2:] == ["acts-too closes", "acts closes"]  # what was done last is undone first


def test_where_one_cannot_begin_those_before_it_are_closed() -> None:
    told: list[str] = []
    mix = Mix([Acts("rates", told=told), ActsToo("phases", told=told, breaks=True), Hostile()])
    with pytest.raises(RuntimeError, match="acts-too breaks"):
        mix.begin(setting(_models.bert()))
    assert told == ["acts begins", "acts closes"]


def test_the_order_of_a_mix_does_not_count(arguments: Callable[..., TrainingArguments]) -> None:
    found = []
    for methods in (["noisytune", "reinit"], ["reinit", "noisytune"]):
        model = _models.bert()
        MethodTrainer(model, arguments(max_steps=1), methods=methods, train_dataset=DATA).train()
        found.append(weights(model))
    assert torch.equal(found[0], found[1])
