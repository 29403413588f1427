from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import _models
from tests.integrations._training import DATA, Before, assert_same_weights
from tests.methods._by_hand import STEPS, by_hand, loss_of
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from evenkeel import components
from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import GradualUnfreezing, Method, Mix, Setting
from evenkeel.methods.child_tuning_d import ChildTuningD, _most
from evenkeel.testing import MethodContract

Arguments = Callable[..., TrainingArguments]


def trained(model: nn.Module, args: TrainingArguments, method: Method, **more: Any) -> nn.Module:
    MethodTrainer(model, args, methods=[method], train_dataset=DATA, **more).train()
    return model


def of_blocks(model: nn.Module) -> dict[str, Tensor]:
    return {name: one for name, one in model.named_parameters() if "encoder.layer" in name}


def child(model: nn.Module, share: float) -> dict[str, Tensor]:
    """The mask, from the gradients of each batch, by sorting."""
    model.eval()
    inside = of_blocks(model)
    information = {name: torch.zeros_like(one) for name, one in inside.items()}
    for step in range(STEPS):
        for name, found in zip(inside, torch.autograd.grad(loss_of(model, step), inside.values()), strict=True):
            information[name] += found**2 / STEPS
    flat = torch.cat([one.flatten() for one in information.values()])
    least = flat.sort(descending=True).values[round(share * len(flat)) - 1]
    return {name: one >= least for name, one in information.items()}


def test_it_is_the_rule_written_by_hand(arguments: Arguments) -> None:
    ours, theirs = _models.bert().double(), _models.bert().double()
    trained(ours, arguments(weight_decay=0.1), ChildTuningD(p=0.2))
    masks = child(theirs, 0.2)

    def mask(step: int) -> None:
        for name, one in of_blocks(theirs).items():
            one.grad = torch.where(masks[name], one.grad, 0.0)

    by_hand(theirs, weight_decay=0.1, before_step=mask)
    assert_same_weights(ours, theirs, tolerance=1e-10)


def test_the_share_of_the_blocks_moves_and_everything_outside(arguments: Arguments) -> None:
    model, before = _models.bert(), _models.bert()
    trained(model, arguments(), ChildTuningD(p=0.1))
    moved = {
        name: one != other for (name, one), other in zip(model.named_parameters(), before.parameters(), strict=True)
    }
    inside = [moved[name].flatten() for name in of_blocks(model)]
    assert torch.cat(inside).sum().item() == round(0.1 * torch.cat(inside).numel())
    outside = {name: share.any().item() for name, share in moved.items() if name not in of_blocks(model)}
    assert all(outside.values()), outside


class State(TrainerCallback):
    """Keeps torch's generator and the gradients as they are before the first step."""

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            self.generator = torch.get_rng_state()
            self.gradients = [one.grad for one in kwargs["model"].parameters()]
            self.weights = [one.detach().clone() for one in kwargs["model"].parameters()]


def test_the_first_look_leaves_no_trace(arguments: Arguments) -> None:
    found, plain = State(), State()
    usual = {"max_steps": 1, "train_sampling_strategy": "random"}
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    model = _models.bert(**dropout)
    trained(model, arguments(**usual), ChildTuningD(), callbacks=[found])
    trained(_models.bert(**dropout), arguments(**usual), ChildTuningD(p=1.0), callbacks=[plain])
    assert torch.equal(found.generator, plain.generator)
    assert all(map(torch.equal, found.weights, plain.weights))
    assert found.gradients == [None] * len(found.gradients)
    assert model.training


def test_clipping_comes_first(arguments: Arguments) -> None:
    norms: list[float] = []

    def keep(model: nn.Module, optimizer: Any, step: int) -> None:
        norms.append(math.hypot(*(one.grad.norm().item() for one in model.parameters() if one.grad is not None)))

    model = _models.bert()
    trainer = MethodTrainer(model, arguments(max_steps=1), methods=[ChildTuningD(p=0.1)], train_dataset=DATA)
    trainer.add_callback(Before(keep))  # the last to be asked
    trainer.train()
    assert trainer.last_clip is not None
    assert trainer.last_clip.total_norm > 1
    assert norms[0] < 0.99


# --- the choice


@given(
    values=st.lists(st.sampled_from([0.0, 1.0, 4.0, 9.0]), min_size=1, max_size=12),
    cut=st.integers(0, 12),
    share=st.floats(0.01, 1.0),
)
def test_exactly_the_share_with_the_most_is_kept_and_of_equals_the_first(
    values: list[float], cut: int, share: float
) -> None:
    flat = torch.tensor(values)
    found = _most({"one": flat[:cut], "other": flat[cut:].reshape(-1, 1)}, share)
    assert {name: one.shape for name, one in found.items()} == {
        "one": flat[:cut].shape,
        "other": flat[cut:].reshape(-1, 1).shape,
    }
    wanted = sorted(range(len(values)), key=lambda place: (-values[place], place))[: max(1, round(share * len(values)))]
    kept = torch.cat([one.flatten() for one in found.values()])
    assert kept.nonzero().flatten().tolist() == sorted(wanted)


def of_gradients(values: list[float]) -> Setting:
    """A model with a block for each value, which is the gradient of its weight in each of two batches."""
    model = nn.Module()
    model.layers = nn.ModuleList(nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU()) for _ in values)
    weights = list(model.parameters())

    def batches() -> Iterator[Tensor]:
        for _ in range(2):
            yield sum((weight.sum() * value for weight, value in zip(weights, values, strict=True)), torch.zeros(()))

    return Setting(model=model, parts=components(model), losses=batches)


def test_gradients_that_are_not_finite_are_refused() -> None:
    session = ChildTuningD().begin(of_gradients([1.0, math.nan, 2.0]))
    with pytest.raises(MethodError, match="not finite before training.*bf16=True"):
        session.start()


def test_a_mask_takes_a_bit_in_a_checkpoint(arguments: Arguments) -> None:
    model = _models.bert()
    setting = Setting(model=model, parts=components(model), losses=lambda: (loss_of(model, step) for step in range(2)))
    session = ChildTuningD(p=0.3).begin(setting)
    session.start()
    state = session.state_dict()
    sizes = {name: (one.numel() + 7) // 8 for name, one in of_blocks(model).items()}
    assert {name: bits.numel() for name, bits in state["masks"].items()} == sizes
    assert {bits.dtype for bits in state["masks"].values()} == {torch.uint8}
    again = ChildTuningD(p=0.3).begin(setting)
    again.load_state_dict(state)
    assert all(map(torch.equal, again.state_dict()["masks"].values(), state["masks"].values()))


# --- what cannot be


def test_models_without_trained_blocks_are_refused(arguments: Arguments) -> None:
    model = _models.bert()
    model.bert.encoder.requires_grad_(False)
    with pytest.raises(MethodError, match="of a model's blocks, and none of them is trained"):
        trained(model, arguments(), ChildTuningD())
    with pytest.raises(MethodError, match="of a model's blocks"):
        ChildTuningD().check(Setting(model=nn.Linear(2, 2), parts=components(nn.Linear(2, 2))))


def test_blocks_that_are_frozen_when_training_begins_are_refused() -> None:
    setting = of_gradients([1.0, 2.0])
    session = ChildTuningD().begin(setting)
    setting.model.requires_grad_(False)
    with pytest.raises(MethodError, match="frozen when training begins"):
        session.start()


def test_it_is_not_mixed_with_what_freezes_blocks_in_the_beginning() -> None:
    with pytest.raises(MethodError, match="most are still frozen then"):
        Mix((ChildTuningD(), GradualUnfreezing()))


@pytest.mark.parametrize("share", [0, -0.1, 1.1, math.nan, math.inf, True, "0.3", None, [0.3]])
def test_p_is_a_share(share: Any) -> None:
    with pytest.raises(MethodError, match=r"p must be a .*number above 0 to 1, but got .*0\.1, 0\.2 and 0\.3"):
        ChildTuningD(p=share)


class TestChildTuningDContract(MethodContract):
    adds_up = False  # the gradients that it looks at beforehand are those of micro-batches

    def make(self) -> Method:
        return ChildTuningD(p=0.3)

    def neutral(self) -> Method:
        return ChildTuningD(p=1.0)
