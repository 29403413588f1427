from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests import _models
from tests.integrations._training import DATA, assert_same_weights
from tests.methods._by_hand import by_hand, rows
from tests.methods._passes import (
    DROPOUT,
    SEED,
    Seeds,
    assert_is_full_with_dropout,
    batch_of,
    hooks,
    labels,
    padded,
    seed,
    setting,
    symmetric,
    words,
)
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainingArguments

from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import Method, Moment, Problem
from evenkeel.methods.r3f import R3F
from evenkeel.testing import MethodContract
from evenkeel.testing._tiny import language_model

Arguments = Callable[..., TrainingArguments]


def draw(noise: str, like: Tensor, moment: Moment) -> Tensor:
    generator = moment.generator("r3f")
    if noise == "normal":
        return torch.empty_like(like).normal_(0, 0.2, generator=generator)
    return torch.empty_like(like).uniform_(-0.2, 0.2, generator=generator)


@pytest.mark.parametrize("noise", ["uniform", "normal"])
def test_it_trains_on_the_loss_and_the_divergence_from_noisy_embeddings(arguments: Arguments, noise: Any) -> None:
    ours, theirs = _models.bert(**DROPOUT).double(), _models.bert(**DROPOUT).double()
    method = R3F(weight=1.5, eps=0.2, noise=noise)
    MethodTrainer(ours, arguments(), methods=[method], train_dataset=DATA, callbacks=[Seeds()]).train()

    def loss(model: nn.Module, step: int) -> Tensor:
        seed(step)
        clean = model(input_ids=rows(step)).logits
        embedded = words(model, rows(step)).detach()  # as in the published code
        noisy = model(inputs_embeds=embedded + draw(noise, embedded, Moment(step=step, seed=SEED))).logits
        return F.cross_entropy(clean, labels(step)) + 1.5 * symmetric(clean, noisy)

    by_hand(theirs, loss=loss)
    assert_same_weights(ours, theirs, tolerance=1e-10)


def test_a_language_model_is_compared_at_each_token_that_has_a_label() -> None:
    model = language_model("gpt2").double()
    ids = torch.randint(3, 32, (2, 6), generator=torch.Generator().manual_seed(0))
    truth = ids.clone()
    truth[0, :3] = -100
    batch = batch_of(model, {"input_ids": ids, "labels": truth}, problem="causal-lm", items=9)
    found = R3F(eps=0.2).begin(setting(model, "causal-lm")).loss_term(batch)
    embedded = words(model, ids)
    noisy = model(inputs_embeds=embedded + draw("uniform", embedded, batch.moment)).logits
    clean = model(input_ids=ids).logits
    apart = [
        symmetric(clean[row, token][None], noisy[row, token][None])
        for row in range(2)
        for token in range(5)
        if truth[row, token + 1] != -100
    ]
    assert len(apart) == 8
    torch.testing.assert_close(found, sum(apart) / 9)


def test_noise_belongs_to_the_micro_batch_and_leaves_the_global_generator_alone() -> None:
    model = _models.bert()
    session = R3F(eps=0.2).begin(setting(model))
    batch = batch_of(model, padded())
    before = torch.get_rng_state()
    one, again = session.loss_term(batch), session.loss_term(batch)
    assert one is not None
    assert again is not None
    assert one.item() == again.item() > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_no_hook_is_left_also_by_an_exception() -> None:
    model = _models.bert()
    batch = batch_of(model, padded())
    session = R3F().begin(setting(model))
    session.loss_term(batch)
    assert hooks(model) == 0
    model.classifier.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        session.loss_term(batch)
    assert hooks(model) == 1


def test_with_no_weight_it_is_full_also_with_dropout(arguments: Arguments) -> None:
    assert_is_full_with_dropout(R3F(weight=0), arguments)


# --- what cannot be


@pytest.mark.parametrize("option", ["weight", "eps"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "much", None, True])
def test_bad_numbers_are_refused(option: str, value: Any) -> None:
    with pytest.raises(MethodError, match=rf"r3f: {option} must be a .*number from 0, but got"):
        R3F(**{option: value})


@pytest.mark.parametrize("noise", ["unifrom", None, 1, ["uniform"]])
def test_unknown_noise_is_refused(noise: Any) -> None:
    with pytest.raises(MethodError, match=r"unknown noise of r3f .*Known: normal, uniform"):
        R3F(noise=noise)


@pytest.mark.parametrize(
    ("problem", "said"), [("regression", "a regression has none"), ("unknown", "does not know what this model")]
)
def test_what_has_no_classes_is_refused(problem: Problem, said: str) -> None:
    with pytest.raises(MethodError, match=rf"r3f .*{said}"):
        R3F().check(setting(_models.bert(), problem))


def test_a_model_that_does_not_tell_its_embeddings_is_refused() -> None:
    with pytest.raises(MethodError, match="r3f changes the embeddings"):
        R3F().check(setting(nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2))))


class TestR3FContract(MethodContract):
    adds_up = False
    regression = False

    def make(self) -> Method:
        return R3F(eps=0.1)

    def neutral(self) -> Method:
        return R3F(weight=0.0)
