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
    counted,
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
from evenkeel.methods import Method, Moment
from evenkeel.methods.smart import Smart
from evenkeel.testing import MethodContract
from evenkeel.testing._tiny import language_model

Arguments = Callable[..., TrainingArguments]


def worst(
    embedded: Tensor, clean: Tensor, predict: Callable[[Tensor], Tensor], moment: Moment, *, steps: int, size: float
) -> Tensor:
    """The paper's inner maximization, written for tokens one by one."""
    delta = torch.empty_like(embedded).normal_(0, 0.01, generator=moment.generator("smart"))
    for _ in range(steps):
        delta = delta.detach().requires_grad_()
        apart = symmetric(predict(embedded.detach() + delta), clean.detach())
        (gradient,) = torch.autograd.grad(apart, delta)
        delta = delta.detach().clone()
        for row in range(len(delta)):
            for token in range(delta.shape[1]):
                if gradient[row, token].any():  # there is none where nothing that counts comes after
                    delta[row, token] += size * gradient[row, token] / gradient[row, token].abs().max()
    return delta.detach()


def test_it_trains_on_the_divergence_from_the_worst_neighbours_and_from_the_average(arguments: Arguments) -> None:
    ours, theirs = _models.bert(**DROPOUT).double(), _models.bert(**DROPOUT).double()
    method = Smart(weight=2.0, steps=2, step_size=0.1, sigma=0.01, mu=0.5, momentum=0.9)
    MethodTrainer(ours, arguments(), methods=[method], train_dataset=DATA, callbacks=[Seeds()]).train()
    average = {name: one.detach().clone() for name, one in theirs.named_parameters()}

    def loss(model: nn.Module, step: int) -> Tensor:
        seed(step)
        clean, embedded = model(input_ids=rows(step)).logits, words(model, rows(step))

        def predict(given: Tensor) -> Tensor:
            return model(inputs_embeds=given).logits  # type: ignore[no-any-return]

        delta = worst(embedded, clean, predict, Moment(step=step, seed=SEED), steps=2, size=0.1)
        neighbour = predict(embedded + delta)
        with torch.no_grad():
            slow = torch.func.functional_call(model, average, kwargs={"input_ids": rows(step)}).logits
        task = F.cross_entropy(clean, labels(step))
        return task + 2.0 * symmetric(neighbour, clean) + 0.5 * symmetric(clean, slow)

    def follow(_: int) -> None:
        for name, one in theirs.named_parameters():
            average[name].mul_(0.9).add_(one, alpha=0.1)

    by_hand(theirs, loss=loss, after_step=follow)
    assert_same_weights(ours, theirs, tolerance=1e-9)


def test_a_regression_is_compared_by_squared_differences() -> None:
    model = _models.bert(num_labels=1).double()
    inputs = padded() | {"labels": torch.linspace(0, 1, 4, dtype=torch.float64)}
    batch = batch_of(model, inputs, problem="regression")
    found = Smart(step_size=0.1, sigma=0.01).begin(setting(model, "regression")).loss_term(batch)
    embedded, mask = words(model, inputs["input_ids"]).detach(), inputs["attention_mask"]
    clean = batch.outputs.logits.detach()
    delta = torch.empty_like(embedded).normal_(0, 0.01, generator=batch.moment.generator("smart")).requires_grad_()
    apart = F.mse_loss(model(inputs_embeds=embedded + delta, attention_mask=mask).logits, clean)
    (gradient,) = torch.autograd.grad(apart, delta)
    norm = gradient.abs().amax(-1, keepdim=True)
    delta = delta.detach() + torch.where(norm > 0, 0.1 * gradient / norm, 0.0)  # none at padding
    wanted = F.mse_loss(model(inputs_embeds=embedded + delta, attention_mask=mask).logits, clean)
    assert bool((norm == 0).any())
    torch.testing.assert_close(found, wanted)


def test_a_language_model_is_compared_at_each_token_that_has_a_label() -> None:
    model = language_model("llama").double()
    ids = torch.randint(3, 32, (2, 6), generator=torch.Generator().manual_seed(0))
    truth = ids.clone()
    truth[0, :3] = -100
    batch = batch_of(model, {"input_ids": ids, "labels": truth}, problem="causal-lm", items=9)
    method = Smart(step_size=0.1, sigma=0.01)
    found = method.begin(setting(model, "causal-lm")).loss_term(batch)
    counts = truth[:, 1:] != -100

    def predict(given: Tensor) -> Tensor:
        return model(inputs_embeds=given).logits[:, :-1][counts]  # type: ignore[no-any-return]

    embedded = words(model, ids).detach()
    clean = predict(embedded)
    delta = worst(embedded, clean, predict, batch.moment, steps=1, size=0.1)
    torch.testing.assert_close(found, symmetric(predict(embedded + delta), clean) * 8 / 9)


def test_the_search_for_neighbours_leaves_gradients_and_the_global_generator_alone() -> None:
    model = _models.bert()
    batch = batch_of(model, padded())
    before = torch.get_rng_state()
    session = Smart(step_size=0.1, mu=1.0).begin(setting(model))
    session.start()
    with counted(model) as calls:
        session.loss_term(batch)
    assert calls() == 3  # one for the gradient, one at the neighbour, one with the average
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)
    assert hooks(model) == 0


def test_frozen_embeddings_have_neighbours_too() -> None:
    model = _models.bert()
    model.bert.embeddings.requires_grad_(False)
    found = Smart(step_size=0.1).begin(setting(model)).loss_term(batch_of(model, padded()))
    assert found is not None
    assert found.item() > 0


def test_with_no_weight_it_is_full_also_with_dropout(arguments: Arguments) -> None:
    assert_is_full_with_dropout(Smart(weight=0), arguments)


def test_what_is_released_or_added_later_is_averaged_too() -> None:
    model = _models.bert()
    model.bert.pooler.requires_grad_(False)  # by the user
    session = Smart(mu=1.0, momentum=0.75).begin(setting(model))
    model.bert.encoder.requires_grad_(False)  # by a phase
    model.bert.register_parameter("added", nn.Parameter(torch.zeros(2)))
    session.start()
    kept = session.state_dict()["average"]
    assert kept.keys() == {name for name, _ in model.named_parameters() if "pooler" not in name}
    with torch.no_grad():
        model.bert.added.add_(4.0)
    session.after_step(None)  # type: ignore[arg-type]
    assert kept["bert.added"].tolist() == [1.0, 1.0]


def test_a_checkpoint_without_the_average_is_refused() -> None:
    model = _models.bert()
    session, without = (Smart(mu=mu).begin(setting(model)) for mu in (1.0, 0.0))
    without.start()
    with pytest.raises(MethodError, match=r"smart: the checkpoint keeps nothing for 'bert.*'.*; resume with the"):
        session.load_state_dict(without.state_dict())


# --- what cannot be


@pytest.mark.parametrize(
    ("option", "bad"),
    [
        ("weight", [-1, float("inf")]),
        ("steps", [0, 1.5, 2.0]),
        ("step_size", [0, -1]),
        ("sigma", [0, -1]),
        ("mu", [-1]),
        ("momentum", [-0.1, 1, 1.5]),
    ],
)
def test_bad_numbers_are_refused(option: str, bad: list[Any]) -> None:
    for value in [*bad, float("nan"), "much", None, True, [1]]:
        with pytest.raises(MethodError, match=rf"smart: {option} must be a .*number .*but got"):
            Smart(**{option: value})


def test_what_it_cannot_compare_is_refused() -> None:
    with pytest.raises(MethodError, match="smart .*does not know what this model predicts"):
        Smart().check(setting(_models.masked_bert(), "unknown"))
    with pytest.raises(MethodError, match="smart changes the embeddings"):
        Smart().check(setting(nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2))))


class TestSmartContract(MethodContract):
    adds_up = False

    def make(self) -> Method:
        return Smart(step_size=0.1, mu=1.0, momentum=0.5)

    def neutral(self) -> Method:
        return Smart(weight=0.0)
