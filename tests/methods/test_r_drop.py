from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests import _models
from tests.integrations._training import DATA, assert_same_weights, weights
from tests.methods._by_hand import by_hand, rows
from tests.methods._passes import DROPOUT, Seeds, kl, labels, seed, setting, symmetric, with_logits
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainingArguments

from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import Batch, FullFineTuning, Method, Problem
from evenkeel.methods.r_drop import RDrop
from evenkeel.testing import MethodContract

Arguments = Callable[..., TrainingArguments]


def term(method: Method, batch: Batch) -> Tensor:
    found = method.begin(setting(_models.bert(**DROPOUT))).loss_term(batch)
    assert found is not None
    return found


def logits(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the formula


def test_it_trains_on_the_mean_of_both_losses_and_half_the_symmetric_divergence(arguments: Arguments) -> None:
    ours, theirs = _models.bert(**DROPOUT).double(), _models.bert(**DROPOUT).double()
    args = arguments()
    MethodTrainer(ours, args, methods=[RDrop(alpha=0.7)], train_dataset=DATA, callbacks=[Seeds()]).train()

    def loss(model: nn.Module, step: int) -> Tensor:
        seed(step)
        one, other = (model(input_ids=rows(step)).logits for _ in range(2))
        both = [F.cross_entropy(found, labels(step)) for found in (one, other)]
        return sum(both) / 2 + 0.7 * (kl(one, other) + kl(other, one)) / 2  # type: ignore[return-value]

    by_hand(theirs, loss=loss)
    assert_same_weights(ours, theirs, tolerance=1e-10)


def test_the_papers_loss_is_twice_this_one_with_twice_its_alpha() -> None:
    one, other, truth = logits(4, 3, seed=0), logits(4, 3, seed=1), torch.tensor([0, 2, 1, 1])
    losses = F.cross_entropy(one, truth).item(), F.cross_entropy(other, truth).item()
    batch = with_logits(one, other, problem="classification", losses=losses)
    ours = batch.loss + term(RDrop(alpha=0.25), batch)
    papers = sum(losses) + 0.5 * symmetric(one, other) / 2
    torch.testing.assert_close(2 * ours, papers)


def test_a_language_model_is_compared_at_each_token_that_has_a_label() -> None:
    one, other = logits(2, 4, 5, seed=0), logits(2, 4, 5, seed=1)
    truth = torch.tensor([[-100, 1, 2, -100], [-100, -100, 3, 4]])
    pairs = [(row, token) for row in range(2) for token in range(3) if truth[row, token + 1] != -100]
    apart = [symmetric(one[row, token][None], other[row, token][None]) for row, token in pairs]
    batch = with_logits(one, other, problem="causal-lm")
    batch = Batch(**vars(batch) | {"inputs": {"labels": truth}, "items": torch.tensor(10)})  # 10 in the large batch
    torch.testing.assert_close(term(RDrop(), batch), sum(apart) / 10 / 2)  # type: ignore[arg-type]


def test_labels_of_a_multi_label_model_are_compared_one_by_one() -> None:
    one, other = logits(4, 3, seed=0), logits(4, 3, seed=1)
    no = torch.zeros(4, dtype=torch.float64)
    apart = [
        symmetric(torch.stack([no, one[:, label]], -1), torch.stack([no, other[:, label]], -1)) for label in range(3)
    ]
    found = term(RDrop(), with_logits(one, other, problem="multi-label"))
    torch.testing.assert_close(found, sum(apart) / 3 / 2)  # type: ignore[arg-type]


def test_with_no_weight_it_is_full_also_with_dropout(arguments: Arguments) -> None:
    found, states = [], []
    for method in (RDrop(alpha=0), FullFineTuning()):
        model = _models.bert(**DROPOUT)
        MethodTrainer(model, arguments(), methods=[method], train_dataset=DATA).train()
        found.append(weights(model))
        states.append(torch.get_rng_state())
    assert torch.equal(found[0], found[1])
    assert torch.equal(states[0], states[1])


# --- what cannot be


@pytest.mark.parametrize("alpha", [-1, float("nan"), float("inf"), "much", None, True, [1.0]])
def test_bad_values_are_refused(alpha: Any) -> None:
    with pytest.raises(MethodError, match=r"r-drop: alpha must be a .*number from 0, but got .*; 0.1, 0.5 and 1 are"):
        RDrop(alpha=alpha)


@pytest.mark.parametrize(
    ("problem", "said"), [("regression", "a regression has none"), ("unknown", "does not know what this model")]
)
def test_what_has_no_classes_is_refused(problem: Problem, said: str) -> None:
    with pytest.raises(MethodError, match=rf"r-drop .*{said}"):
        RDrop().check(setting(_models.bert(**DROPOUT), problem))


def test_a_model_without_dropout_is_refused() -> None:
    with pytest.raises(MethodError, match="this model has none; set a dropout rate above 0"):
        RDrop().check(setting(_models.bert()))
    RDrop(alpha=0).check(setting(_models.bert()))
    with torch.device("meta"):
        model = _models.bert(**DROPOUT)
    RDrop().check(setting(model))


class TestRDropContract(MethodContract):
    regression = False
    adds_up = False  # it needs dropout, which does not
    dropout = 0.1

    def make(self) -> Method:
        return RDrop(alpha=1.0)

    def neutral(self) -> Method:
        return RDrop(alpha=0.0)
