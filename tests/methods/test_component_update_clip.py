from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests import _models
from tests.integrations._training import BATCH, DATA, EPSILON, RATE, assert_same_weights
from tests.methods._by_hand import STEPS
from tests.optim._limited_by_hand import LimitedByHand
from torch import nn
from torch.nn import functional as F
from transformers import TrainingArguments

from evenkeel import clip_grad_norm_, components
from evenkeel.errors import MethodError, ThresholdError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import FullFineTuning, Method, Mix, Setting
from evenkeel.methods.component_update_clip import ComponentUpdateClipping
from evenkeel.methods.stable_adamw import StableUpdate
from evenkeel.optim import ClippedAdamW
from evenkeel.testing import MethodContract

Arguments = Callable[..., TrainingArguments]
DECAY = 0.1


def trained(model: nn.Module, args: TrainingArguments, method: Method, **more: Any) -> MethodTrainer:
    trainer = MethodTrainer(model, args, methods=[method], train_dataset=DATA, **more)
    trainer.train()
    return trainer


def by_formula(
    model: nn.Module,
    share: Callable[[str], float],
    *,
    by: Any = "tensor",
    floor: float = 1e-3,
    max_norm: float = math.inf,
    epochs: int = 1,
    rate: Callable[[int], float] = lambda step: RATE,
    measured: Callable[[int], float] | None = None,
) -> list[float]:
    """Train on whole batches, and return all coefficients."""
    parts = components(model, by)
    hand = LimitedByHand(
        model,
        share=share,
        members=[[piece.name for piece in part.pieces] for part in parts],
        rate=RATE,
        eps=EPSILON,
        decay=lambda name: 0.0 if name.endswith("bias") or "Norm" in name else DECAY,
        floor=floor,
    )
    model.train()
    seen: list[float] = []
    for step in range(epochs * STEPS):
        ids = DATA.ids[(step % STEPS) * BATCH : (step % STEPS + 1) * BATCH]
        model.zero_grad()
        F.cross_entropy(model(input_ids=ids).logits, ids[:, 0] % 2).backward()
        clip_grad_norm_(parts, max_norm)
        now, judged = rate(step), (measured or rate)(step)
        hand.step(lambda name, now=now: now, lambda name, judged=judged: judged)  # type: ignore[misc]
        seen += hand.coefficients
    return seen


METHODS: dict[str, tuple[ComponentUpdateClipping, Callable[[str], float]]] = {
    "number": (ComponentUpdateClipping(max_update=0.02), lambda name: 0.02),
    "roles": (
        ComponentUpdateClipping(max_update={"query": 1e-3, "*": 0.02}, max_norm=0.05, floor=0.01),
        lambda name: 1e-3 if ".query." in name else 0.02,
    ),
    "layers": (ComponentUpdateClipping(max_update=0.02, by="layer"), lambda name: 0.02),
}


@pytest.mark.parametrize(
    ("which", "accumulate"),
    [
        ("number", 1),
        ("roles", 2),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (("number", 2), ("roles", 1), ("layers", 1))),
    ],
)
def test_it_is_the_formula(arguments: Arguments, which: str, accumulate: int) -> None:
    method, share = METHODS[which]
    ours, theirs = _models.bert().double(), _models.bert().double()
    args = arguments(
        weight_decay=DECAY,
        num_train_epochs=3,
        per_device_train_batch_size=BATCH // accumulate,
        gradient_accumulation_steps=accumulate,
    )
    trained(ours, args, method)
    max_norm = math.inf if method.max_norm is None else float(method.max_norm)  # type: ignore[arg-type]
    seen = by_formula(theirs, share, by=method.by, floor=method.floor, max_norm=max_norm, epochs=3)
    assert_same_weights(ours, theirs, tolerance=1e-9)
    assert min(seen) < 0.9
    assert max(seen) == 1.0


@pytest.mark.parametrize("decay", [False, True])
def test_the_limit_follows_the_schedule_where_it_is_to(arguments: Arguments, decay: bool) -> None:
    def rate(step: int) -> float:  # 5 steps: 2 of warm-up, then down to 0
        return RATE * (step / 2 if step < 2 else (STEPS - step) / (STEPS - 2))

    ours, theirs = _models.bert().double(), _models.bert().double()
    args = arguments(weight_decay=DECAY, warmup_steps=2, lr_scheduler_type="linear")
    trained(ours, args, ComponentUpdateClipping(max_update=0.02, decay=decay))
    seen = by_formula(theirs, lambda name: 0.02, rate=rate, measured=(lambda step: RATE) if decay else None)
    assert_same_weights(ours, theirs, tolerance=1e-9)
    assert min(seen) < 0.9


def test_checkpoints_are_adamws(arguments: Arguments) -> None:
    trainer = trained(_models.bert(), arguments(), ComponentUpdateClipping())
    optimizer = trainer.optimizer.optimizer  # in Accelerate's wrapper
    assert type(optimizer) is ClippedAdamW
    assert set(optimizer.state_dict()) == {"state", "param_groups"}
    plain = trained(_models.bert(), arguments(), FullFineTuning()).optimizer.optimizer
    plain.load_state_dict(optimizer.state_dict())
    assert optimizer.last_update is not None
    assert bool((optimizer.last_update.coefficients < 1).any())


def test_numbers_that_name_nothing_are_refused() -> None:
    model = _models.bert()
    setting = Setting(model=model, parts=components(model))
    ComponentUpdateClipping(max_update={"query": 1e-3, "*": 0.1}).check(setting)
    for numbers, said in (({"qeury": 0.1, "*": 1.0}, "max_update names 'qeury'"), ({"query": 0.1}, "says nothing of")):
        with pytest.raises(ThresholdError, match=said):
            ComponentUpdateClipping(max_update=numbers).check(setting)


@pytest.mark.parametrize(
    ("option", "bad", "said"),
    [
        ("max_update", [0, -1, math.nan, True, "1", None, {}, {"query": 0}, {1: 1.0}], "component-update-clip: max_up"),
        ("max_norm", [0, -1, math.nan, True, {}, {"query": 0}], "component-update-clip: max_norm"),
        ("floor", [0, -1, math.nan, math.inf, True, "1", None], "component-update-clip: the floor of max_update"),
        ("decay", [1, None, "yes"], "component-update-clip: decay of max_update"),
    ],
)
def test_what_cannot_be_is_refused(option: str, bad: list[Any], said: str) -> None:
    for value in bad:
        with pytest.raises(ThresholdError, match=said):
            ComponentUpdateClipping(**{option: value})


def test_an_unknown_partition_is_refused() -> None:
    with pytest.raises(MethodError, match="unknown by of component-update-clip 'tensors': did you mean 'tensor'"):
        ComponentUpdateClipping(by="tensors")  # type: ignore[arg-type]


def test_who_else_decides_updates_is_refused(arguments: Arguments) -> None:
    with pytest.raises(MethodError, match="each decides how the optimizer updates weights"):
        Mix((ComponentUpdateClipping(), StableUpdate()))
    model = _models.bert()
    for own in (
        {"optimizers": (torch.optim.AdamW(model.parameters()), None)},
        {"optimizer": "clipped-adamw"},
    ):
        with pytest.raises(MethodError, match="component-update-clip"):
            trained(model, arguments(), ComponentUpdateClipping(), **own)


class TestComponentUpdateClippingContract(MethodContract):
    def make(self) -> Method:
        return ComponentUpdateClipping()

    def neutral(self) -> Method:
        return ComponentUpdateClipping(max_update=math.inf)

    def twin(self) -> tuple[Method]:
        return (FullFineTuning(max_norm=math.inf),)


class TestUpdatesLimitedByLayerContract(MethodContract):
    def make(self) -> Method:
        return ComponentUpdateClipping(max_update=0.01, max_norm=0.05, decay=True, by="layer")

    def neutral(self) -> Method:
        return ComponentUpdateClipping(max_update=math.inf, max_norm=1.0, by="global")
