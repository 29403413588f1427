from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests import _models
from tests.integrations._training import DATA, Before, assert_same_weights
from tests.methods._by_hand import by_hand, rows
from tests.methods._passes import DROPOUT, SEED, hooks, labels
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainingArguments

from evenkeel import components
from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import Method, Moment, Session, Setting
from evenkeel.methods.mixout import Mixout
from evenkeel.testing import MethodContract
from evenkeel.testing._tiny import classifier, language_model

Arguments = Callable[..., TrainingArguments]
IDS = _models.Rows(2).ids


def setting(model: nn.Module) -> Setting:
    return Setting(model=model, parts=components(model), problem="classification")


def begun(model: nn.Module, p: float = 0.5) -> Session:
    """A session that started before all weights moved."""
    session = Mixout(p=p).begin(setting(model))
    session.start()
    session.before_forward(Moment(step=0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25)
    return session


def in_order(layers: int) -> list[str]:
    """The linear layers of a BERT classifier in the order in which a pass calls them."""
    block = ["attention.self.query", "attention.self.key", "attention.self.value"]
    block += ["attention.output.dense", "intermediate.dense", "output.dense"]
    inside = [f"bert.encoder.layer.{layer}.{name}" for layer in range(layers) for name in block]
    return [f"{name}.weight" for name in [*inside, "bert.pooler.dense", "classifier"]]


@pytest.mark.parametrize("p", [0.1, 0.7])
def test_it_trains_on_weights_that_are_mixed_with_the_first_ones(arguments: Arguments, p: float) -> None:
    ours, theirs = _models.bert(**DROPOUT).double(), _models.bert().double()
    MethodTrainer(ours, arguments(), methods=[Mixout(p=p)], train_dataset=DATA).train()
    named = dict(theirs.named_parameters())
    first = {name: named[name].detach().clone() for name in in_order(2)}

    def loss(model: nn.Module, step: int) -> Tensor:
        generator, mixed = Moment(step=step, seed=SEED).generator("mixout"), {}
        for name in in_order(2):
            inputs = named[name].shape[1]
            mask = torch.empty(1, inputs, dtype=torch.float64).bernoulli_(1 - p, generator=generator)
            mixed[name] = ((1 - mask) * first[name] + mask * named[name] - p * first[name]) / (1 - p)
        logits = torch.func.functional_call(model, mixed, kwargs={"input_ids": rows(step)}).logits
        return F.cross_entropy(logits, labels(step))

    by_hand(theirs, loss=loss)
    assert_same_weights(ours, theirs, tolerance=1e-10)


def seen(model: nn.Module, layer: nn.Module) -> Tensor:
    """The weight that a layer computes with in a pass of its model."""
    found: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, _: found.append(module.weight))  # type: ignore[arg-type]
    model(input_ids=IDS)
    handle.remove()
    return found[0]


@pytest.mark.parametrize(("name", "dim"), [("bert", 1), ("gpt2", 0), ("deberta", 1)])
def test_outputs_share_what_is_mixed_of_each_input_feature(name: str, dim: int) -> None:
    model = classifier(name)
    layer = {
        "bert": lambda: model.bert.encoder.layer[0].attention.self.query,
        "gpt2": lambda: model.transformer.h[0].attn.c_attn,  # fused, and kept as [in, out]
        "deberta": lambda: model.deberta.encoder.layer[0].attention.self.in_proj,  # fused
    }[name]()
    start = layer.weight.detach().clone()
    session = begun(model.train())
    mixed = (seen(model, layer) - start).movedim(dim, 0)  # [in, out]
    wanted = [0.0, 0.25 / (1 - 0.5)]
    kept = [min(wanted, key=lambda value: abs(value - row[0].item())) for row in mixed]
    torch.testing.assert_close(mixed, torch.tensor(kept)[:, None].expand_as(mixed))
    assert set(kept) == set(wanted)
    session.close()


def test_a_head_that_is_tied_to_the_embeddings_is_left_alone() -> None:
    model = language_model("gpt2").train()
    session = begun(model)
    assert seen(model, model.lm_head) is model.transformer.wte.weight
    assert seen(model, model.transformer.h[0].mlp.c_fc) is not model.transformer.h[0].mlp.c_fc.weight
    assert "lm_head.weight" not in session.state_dict()["start"]
    session.close()


def test_what_is_frozen_is_left_alone() -> None:
    model = _models.bert().train()
    model.bert.requires_grad_(False)
    session = begun(model)
    assert list(session.state_dict()["start"]) == ["classifier.weight"]
    session.close()


def test_masks_are_drawn_anew_for_each_layer_and_pass() -> None:
    model = _models.bert(**DROPOUT).train()
    before = torch.get_rng_state()
    session = begun(model)
    attention = model.bert.encoder.layer[0].attention.self
    found = [seen(model, attention.query), seen(model, attention.query), seen(model, attention.key)]
    masks = [(weight - weight.mean(0)).std(0) for weight in found]
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(masks[0], masks[2])
    session.before_forward(Moment(step=0))
    assert torch.equal(seen(model, attention.query), found[0])
    assert torch.equal(torch.get_rng_state(), before)  # dropout is off
    session.close()
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.3}


def test_nothing_is_mixed_in_evaluation_nor_after_the_session() -> None:
    model = _models.bert()
    session = begun(model)
    query = model.bert.encoder.layer[0].attention.self.query
    assert seen(model.eval(), query) is query.weight
    session.close()
    assert seen(model.train(), query) is query.weight
    assert hooks(model) == 0


def test_between_passes_the_model_has_its_own_parameters(arguments: Arguments) -> None:
    model = _models.bert()
    names, own = list(model.state_dict()), dict(model.named_parameters())
    looks = []

    def look(found: nn.Module, *_: object) -> None:
        looks.append(all(parameter is own[name] for name, parameter in found.named_parameters()))
        assert list(found.state_dict()) == names

    MethodTrainer(model, arguments(), methods=[Mixout()], train_dataset=DATA, callbacks=[Before(look)]).train()
    assert looks == [True] * 5


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_exception_in_a_pass_leaves_the_parameters_in_their_places(error: type[BaseException]) -> None:
    model = _models.bert().train()
    own = dict(model.named_parameters())
    session = begun(model)

    def fail(*_: object) -> None:
        raise error

    model.bert.encoder.layer[0].attention.self.query.register_forward_pre_hook(fail)
    with pytest.raises(error):
        model(input_ids=IDS)
    if error is KeyboardInterrupt:  # which torch does not tell hooks of
        session.close()
    assert list(dict(model.named_parameters())) == list(own)
    assert all(parameter is own[name] for name, parameter in model.named_parameters())


def test_a_checkpoint_without_the_first_weights_is_refused() -> None:
    model = _models.bert()
    session = Mixout().begin(setting(model))
    with pytest.raises(MethodError, match=r"mixout: the checkpoint keeps nothing for '.*weight' .*; resume with the"):
        session.load_state_dict({"start": {}})


# --- what cannot be


@pytest.mark.parametrize("value", [-0.1, 1, 1.5, float("nan"), float("inf"), "much", None, True])
def test_bad_numbers_are_refused(value: Any) -> None:
    with pytest.raises(MethodError, match=r"mixout: p must be a .*number from 0 to below 1, but got"):
        Mixout(p=value)


def test_a_model_of_which_no_linear_layer_is_trained_is_refused() -> None:
    model = _models.bert()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.requires_grad_(False)
    with pytest.raises(MethodError, match="mixout mixes the weights of linear layers, and none is trained"):
        Mixout().check(setting(model))


class TestMixoutContract(MethodContract):
    adds_up = False

    def make(self) -> Method:
        return Mixout(p=0.5)

    def neutral(self) -> Method:
        return Mixout(p=0.0)
