from __future__ import annotations

from collections.abc import Callable
from functools import partial
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
)
from tests.partition import _zoo
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, TrainingArguments

from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import Batch, Method, Moment
from evenkeel.methods.lnsr import LNSR
from evenkeel.testing import MethodContract
from evenkeel.testing._tiny import classifier, language_model

Arguments = Callable[..., TrainingArguments]


def term(method: Method, model: nn.Module, batch: Callable[[], Batch]) -> Tensor:
    """The term of one micro-batch whose first pass is made by ``batch``."""
    session = method.begin(setting(model))
    try:
        session.before_forward(Moment(step=0))
        found = session.loss_term(batch())
    finally:
        session.close()
    assert found is not None
    return found


def noise_for(states: Tensor, moment: Moment, ratio: float) -> Tensor:
    """Of the norm that the paper's figure has, position by position."""
    drawn = torch.randn(states.shape, generator=moment.generator("lnsr"))
    noise = torch.empty_like(states)
    for row in range(states.shape[0]):
        for position in range(states.shape[1]):
            direction = drawn[row, position].to(states.dtype) / drawn[row, position].norm().to(states.dtype)
            noise[row, position] = ratio * states[row, position].norm() * direction
    return noise.detach()


def climb(layers: list[Callable[[Tensor], Any]], states: Tensor, block: int, noise: Any = None) -> list[Tensor]:
    """The hidden states behind each layer, with noise behind one."""
    found = []
    for number, layer in enumerate(layers):
        output = layer(states)
        states = output if isinstance(output, Tensor) else output[0]
        if number == block and noise is not None:
            states = states + noise(states)
        found.append(states)
    return found


@pytest.mark.parametrize("block", [0, 1])
def test_it_trains_on_the_change_of_hidden_states_under_the_same_dropout(arguments: Arguments, block: int) -> None:
    ours, theirs = _models.bert(3, **DROPOUT).double(), _models.bert(3, **DROPOUT).double()
    method = LNSR(weight=0.5, block=block, noise=0.3)
    MethodTrainer(ours, arguments(), methods=[method], train_dataset=DATA, callbacks=[Seeds()]).train()

    def loss(model: nn.Module, step: int) -> Tensor:
        layers = list(model.bert.encoder.layer)  # type: ignore[union-attr,arg-type]
        seed(step)
        clean = climb(layers, model.bert.embeddings(rows(step)), block)  # type: ignore[union-attr,operator]
        task = F.cross_entropy(model.classifier(model.dropout(model.bert.pooler(clean[-1]))), labels(step))  # type: ignore[operator,union-attr]
        seed(step)
        moment = Moment(step=step, seed=SEED)
        noisy = climb(
            layers,
            model.bert.embeddings(rows(step)),  # type: ignore[union-attr,operator]
            block,
            lambda states: noise_for(states, moment, 0.3),
        )
        above = [F.mse_loss(noisy[layer], clean[layer]) for layer in range(block + 1, 3)]
        return task + 0.5 * sum(above)  # type: ignore[return-value]

    by_hand(theirs, loss=loss)
    assert_same_weights(ours, theirs, tolerance=1e-6)  # noise is drawn in float32


def test_padding_does_not_count() -> None:
    model, inputs = _models.bert(3).double(), padded()
    found = term(LNSR(), model, lambda: batch_of(model, inputs))
    moment = batch_of(model, inputs).moment
    blocked = inputs["attention_mask"][:, None, None, :] == 0
    scores = torch.zeros(blocked.shape, dtype=torch.float64).masked_fill(blocked, torch.finfo(torch.float64).min)
    layers = [partial(layer, attention_mask=scores) for layer in model.bert.encoder.layer]
    start = model.bert.embeddings(inputs["input_ids"])
    clean = climb(layers, start, 0)
    noisy = climb(layers, start, 0, lambda given: noise_for(given, moment, 0.05))
    lengths = inputs["attention_mask"].sum(1).tolist()
    assert lengths == [8, 5, 8, 3]
    wanted = [
        F.mse_loss(noisy[layer][row, :length], clean[layer][row, :length])
        for layer in (1, 2)
        for row, length in enumerate(lengths)
    ]
    torch.testing.assert_close(found, sum(wanted) / 4, rtol=1e-6, atol=0.0)


def test_a_language_model_counts_the_tokens_that_have_a_label() -> None:
    model = language_model("gpt2").double()
    ids = torch.randint(3, 32, (2, 6), generator=torch.Generator().manual_seed(0))
    truth = ids.clone()
    truth[0, :3] = -100
    inputs = {"input_ids": ids, "labels": truth}
    batch: list[Batch] = []

    def first() -> Batch:
        batch.append(batch_of(model, inputs, problem="causal-lm", items=9))
        return batch[0]

    found = term(LNSR(noise=0.2), model, first)
    layers = list(model.transformer.h)
    start = model.transformer.wte(ids) + model.transformer.wpe(torch.arange(6))
    clean = climb(layers, start, 0)
    noisy = climb(layers, start, 0, lambda given: noise_for(given, batch[0].moment, 0.2))
    wanted = [
        (noisy[layer][row, token] - clean[layer][row, token]).square().mean()
        for layer in (1, 2)
        for row in range(2)
        for token in range(5)
        if truth[row, token + 1] != -100
    ]
    assert len(wanted) == 2 * 8
    torch.testing.assert_close(found, sum(wanted) / 9, rtol=1e-6, atol=0.0)


def test_a_block_that_is_all_layers_is_followed_through_all_of_them() -> None:
    model = classifier("albert").double()
    inputs = {"input_ids": _models.Rows(2).ids, "labels": torch.tensor([0, 1])}
    batch: list[Batch] = []

    def first() -> Batch:
        batch.append(batch_of(model, inputs))
        return batch[0]

    found = term(LNSR(block=1, noise=0.2), model, first)
    encoder = model.albert.encoder
    layers = [encoder.albert_layer_groups[0].albert_layers[0]] * 3
    start = encoder.embedding_hidden_mapping_in(model.albert.embeddings(inputs["input_ids"]))
    clean = climb(layers, start, 1)
    noisy = climb(layers, start, 1, lambda given: noise_for(given, batch[0].moment, 0.2))
    torch.testing.assert_close(found, F.mse_loss(noisy[2], clean[2]), rtol=1e-6, atol=0.0)


def test_passes_of_other_methods_do_not_count() -> None:
    model, inputs = _models.bert(3, **DROPOUT), padded()

    def first(others: int) -> Batch:
        seed(0)
        batch = batch_of(model, inputs)
        for _ in range(others):
            batch.again()
        return batch

    found = []
    for others in (0, 2):
        seed(0)
        found.append(term(LNSR(), model, lambda others=others: first(others)))  # type: ignore[misc]
    assert found[0].item() == found[1].item() > 0


def test_noise_and_the_second_pass_leave_the_global_generator_alone() -> None:
    model = _models.bert(3, **DROPOUT)
    session = LNSR().begin(setting(model))
    session.before_forward(Moment(step=0))
    batch = batch_of(model, padded())
    before = torch.get_rng_state()
    with counted(model) as calls:
        session.loss_term(batch)
    assert torch.equal(torch.get_rng_state(), before)
    assert calls() == 1
    assert hooks(model) == 3
    session.close()
    assert hooks(model) == 0


def test_with_no_weight_it_is_full_also_with_dropout(arguments: Arguments) -> None:
    assert_is_full_with_dropout(LNSR(weight=0), arguments)


# --- what cannot be


@pytest.mark.parametrize("option", ["weight", "block", "noise"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "much", None, True])
def test_bad_numbers_are_refused(option: str, value: Any) -> None:
    with pytest.raises(MethodError, match=rf"lnsr: {option} must be a .*number from 0, but got"):
        LNSR(**{option: value})


def test_a_block_is_a_whole_number() -> None:
    with pytest.raises(MethodError, match=r"lnsr: block must be a whole number"):
        LNSR(block=0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "block", "said"),
    [
        (lambda: _models.bert(2), 1, "block 1 needs a block above it, and the model has 2; choose block from 0 to 0"),
        (lambda: _models.bert(1), 0, "at least 2 blocks, but found 1; use full"),
        (lambda: nn.Linear(2, 2), 0, "at least 2 blocks, but found 0; use full"),
    ],
    ids=["too high", "too flat", "no blocks"],
)
def test_a_model_without_a_block_above_is_refused(model: Callable[[], nn.Module], block: int, said: str) -> None:
    with pytest.raises(MethodError, match=said):
        LNSR(block=block).check(setting(model()))


def test_of_a_shared_block_the_first_batch_tells() -> None:
    model = classifier("albert")
    LNSR(block=2).check(setting(model))
    with pytest.raises(MethodError, match=r"behind block 2 needs a block above it, and the model has 3"):
        term(LNSR(block=2), model, lambda: batch_of(model, padded()))
    assert hooks(model) == 0


def test_several_stacks_are_refused() -> None:
    model: PreTrainedModel = _zoo.fast("bart")
    with pytest.raises(MethodError, match="has an encoder and a decoder, or several towers; use a method"):
        LNSR().check(setting(model))


class TestLNSRContract(MethodContract):
    adds_up = False

    def make(self) -> Method:
        return LNSR(noise=0.3)

    def neutral(self) -> Method:
        return LNSR(weight=0.0)
