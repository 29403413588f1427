from __future__ import annotations

import copy
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from tests import _models
from tests.integrations._training import DATA, Before, assert_same_weights, weights
from tests.methods._by_hand import by_hand
from torch import Tensor, nn
from transformers import GPT2Config, GPT2ForSequenceClassification, PreTrainedModel, TrainingArguments, set_seed

from evenkeel import components
from evenkeel.errors import MethodError, MissingExtraError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import ComponentClipping, GradualUnfreezing, Method, Mix, Setting, private_generator
from evenkeel.methods.lora import LowRankAdaptation
from evenkeel.methods.sam import SharpnessAwareMinimization
from evenkeel.methods.swa import StochasticWeightAveraging
from evenkeel.testing import MethodContract

Arguments = Callable[..., TrainingArguments]
LORA = LowRankAdaptation
SEED = 42  # of TrainingArguments


def gpt2() -> GPT2ForSequenceClassification:
    set_seed(0)
    config = GPT2Config(
        vocab_size=_models.VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=16, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.2,
    )  # fmt: skip
    return GPT2ForSequenceClassification(config)


def trainer_of(model: nn.Module, args: TrainingArguments, *methods: Method, **more: Any) -> MethodTrainer:
    return MethodTrainer(model, args, methods=list(methods), train_dataset=DATA, **more)


def setting_of(model: nn.Module, **more: Any) -> Setting:
    return Setting(model=model, parts=components(model), **more)


# --- against adapters written by hand


class Adapter:
    """A low-rank change of a layer, as a hook on its output; its weights are float64."""

    def __init__(self, layer: nn.Module, rank: int, scale: float, generator: torch.Generator) -> None:
        out, into = layer.weight.shape if isinstance(layer, nn.Linear) else layer.weight.shape[::-1]
        bound = 1 / math.sqrt(into)  # of torch's linear layers
        drawn = torch.empty(rank, into).uniform_(-bound, bound, generator=generator)
        self.layer, self.scale = layer, scale
        self.first = nn.Parameter(drawn.double())
        self.second = nn.Parameter(torch.zeros(out, rank, dtype=torch.float64))
        self.hook = layer.register_forward_hook(self.add)

    def add(self, layer: nn.Module, given: tuple[Tensor], output: Tensor) -> Tensor:
        return output + self.scale * (given[0] @ self.first.T) @ self.second.T

    def merge(self) -> None:
        self.hook.remove()
        change = self.scale * (self.second @ self.first)
        with torch.no_grad():
            self.layer.weight += change if isinstance(self.layer, nn.Linear) else change.T


@pytest.mark.parametrize(
    ("make", "adapted", "whole"),
    [
        (_models.bert, r"self\.(query|value)$", ("bert.pooler", "classifier")),
        (_models.llama, r"self_attn\.(q|v)_proj$", ("score",)),
        (gpt2, "c_attn$", ("score",)),  # three projections in one, and its weight transposed
    ],
)
def test_it_is_adapters_written_by_hand(
    arguments: Arguments, make: Callable[[], PreTrainedModel], adapted: str, whole: tuple[str, ...]
) -> None:
    set_seed(0)
    ours = make().double()
    theirs = copy.deepcopy(ours)
    trainer_of(ours, arguments(), LORA(rank=3, alpha=12.0)).train()
    theirs.requires_grad_(False)
    layers = {name: module for name, module in theirs.named_modules() if re.search(adapted, name)}
    order = sorted(layers, key=lambda name: name.endswith(("value", "v_proj")))  # queries first, as the roles say
    adapters = [
        Adapter(layers[name], 3, 4.0, private_generator(SEED, "lora", place)) for place, name in enumerate(order)
    ]
    trained = [one for adapter in adapters for one in (adapter.first, adapter.second)]
    for name, parameter in theirs.named_parameters():
        if name.startswith(whole):
            trained.append(parameter.requires_grad_(True))
    by_hand(theirs, parameters=trained)
    assert all(adapter.second.abs().max() > 1e-4 for adapter in adapters)
    for adapter in adapters:
        adapter.merge()
    assert_same_weights(ours, theirs, tolerance=1e-10)


def test_before_the_first_step_the_model_is_the_pretrained_one() -> None:
    model, plain = _models.bert(), _models.bert()
    session = LORA().begin(setting_of(model))
    ids = DATA.ids[:4]
    assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    session.close()
    assert torch.equal(weights(model), weights(plain))


def test_closing_leaves_the_function_that_was_trained() -> None:
    model = gpt2().double()
    session = LORA(rank=2).begin(setting_of(model))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    ids = DATA.ids[:4]
    expected = model(input_ids=ids).logits
    session.close()
    torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=0.0, atol=1e-12)


# --- what is trained, and what is left behind


def test_adapters_head_and_pooler_are_trained() -> None:
    model = _models.bert()
    session = LORA().begin(setting_of(model, problem="classification"))
    paths = {part.path for part in components(model)}
    adapters = {
        f"layer.{layer}.{role}.lora_{which}.weight" for layer in (0, 1) for role in ("query", "value") for which in "AB"
    }
    assert paths == adapters | {"pooler.weight", "pooler.bias", "head.weight", "head.bias"}
    session.close()


def test_the_head_of_a_language_model_is_not_new() -> None:
    model = _models.llama()
    session = LORA(roles=["ffn_in"]).begin(setting_of(model, problem="causal-lm"))
    assert {part.path for part in components(model)} == {
        f"layer.{layer}.ffn_in.lora_{which}.weight" for layer in (0, 1) for which in "AB"
    }
    session.close()


def test_what_the_user_froze_is_neither_adapted_nor_released(arguments: Arguments) -> None:
    model = _models.bert()
    model.bert.encoder.layer[0].requires_grad_(False)
    model.classifier.bias.requires_grad_(False)
    wanted = {name: one.requires_grad for name, one in model.named_parameters()}
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    trainer_of(model, arguments(), LORA()).train()
    moved = {name for name, one in model.named_parameters() if not torch.equal(one, before[name])}
    layer = "bert.encoder.layer.1.attention.self"
    assert moved == {
        f"{layer}.query.weight", f"{layer}.value.weight", "bert.pooler.dense.weight", "bert.pooler.dense.bias",
        "classifier.weight",
    }  # fmt: skip
    assert {name: one.requires_grad for name, one in model.named_parameters()} == wanted


def test_modules_are_the_same_objects_again(arguments: Arguments) -> None:
    model = _models.bert()
    before = dict(model.named_modules(remove_duplicate=False))
    parameters = dict(model.named_parameters())
    trainer_of(model, arguments(), LORA()).train()
    after = dict(model.named_modules(remove_duplicate=False))
    assert list(after) == list(before)
    assert all(after[name] is module for name, module in before.items())
    assert all(parameters[name] is one for name, one in model.named_parameters())
    assert not hasattr(model, "peft_config")


def test_an_injection_that_fails_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _models.bert()
    before = dict(model.named_modules())
    put_in = peft.inject_adapter_in_model

    def fail(*args: Any, **options: Any) -> None:
        put_in(*args, **options)
        raise ZeroDivisionError

    monkeypatch.setattr(peft, "inject_adapter_in_model", fail)
    with pytest.raises(ZeroDivisionError):
        LORA().begin(setting_of(model))
    assert dict(model.named_modules()) == before
    assert all(one.requires_grad for one in model.parameters())


def test_nothing_is_drawn_from_the_global_generator() -> None:
    state = torch.get_rng_state()
    LORA().begin(setting_of(_models.bert(seed=1))).close()
    set_seed(1)
    _models.bert(seed=1)
    after = torch.get_rng_state()
    LORA().begin(setting_of(_models.bert(seed=1))).close()
    assert torch.equal(torch.get_rng_state(), after)
    torch.set_rng_state(state)


def test_a_checkpoint_holds_adapters_and_the_result_does_not(arguments: Arguments, tmp_path: Path) -> None:
    trainer = trainer_of(_models.bert(), arguments(save_strategy="steps", save_steps=3), LORA())
    trainer.train()
    trainer.save_model(str(tmp_path / "result"))
    held = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    assert "bert.encoder.layer.0.attention.self.query.lora_A.default.weight" in held
    assert load_file(tmp_path / "result" / "model.safetensors").keys() == _models.bert().state_dict().keys()


@pytest.mark.parametrize("in_backward", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_trainer_trains_twice(arguments: Arguments, in_backward: bool) -> None:
    model, twin = _models.bert(), _models.bert()
    trainer = trainer_of(model, arguments(), LORA(), in_backward=in_backward)
    for _ in range(2):
        trainer.train()
        trainer_of(twin, arguments(), LORA()).train()
    assert_same_weights(model, twin, tolerance=1e-6)


def test_dropout_drops_what_goes_to_the_adapters(arguments: Arguments) -> None:
    results = []
    for dropout in (0.0, 0.5):
        model = _models.bert()
        trainer_of(model, arguments(), LORA(dropout=dropout)).train()
        results.append(weights(model))
    assert not torch.equal(*results)


# --- with other methods


def test_components_of_adapters_are_clipped(arguments: Arguments) -> None:
    norms: dict[str, float] = {}

    def keep(model: nn.Module, optimizer: Any, step: int) -> None:
        norms.update({name: one.grad.norm().item() for name, one in model.named_parameters() if one.grad is not None})

    trainer = trainer_of(_models.bert(), arguments(max_steps=2), LORA(), ComponentClipping(max_norm=1e-3))
    trainer.add_callback(Before(keep))
    trainer.train()
    assert max(norms.values()) == pytest.approx(1e-3, rel=1e-3)
    assert sum("lora_" in name for name in norms) == 8


@pytest.mark.parametrize("other", [StochasticWeightAveraging(start=0.2), SharpnessAwareMinimization(rho=0.3)])
@pytest.mark.parametrize("first", [pytest.param(True, marks=pytest.mark.slow), False])
def test_methods_that_act_on_what_is_trained_act_on_adapters(arguments: Arguments, other: Method, first: bool) -> None:
    model, plain, before = _models.bert(), _models.bert(), _models.bert()
    methods = [LORA(), other] if first else [other, LORA()]
    trainer_of(model, arguments(), *methods).train()
    trainer_of(plain, arguments(), LORA()).train()
    query = "bert.encoder.layer.1.attention.self.query.weight"
    found, alone, start = (one.get_parameter(query) for one in (model, plain, before))
    assert not torch.equal(found, alone)
    assert torch.linalg.matrix_rank((found - start).double(), rtol=1e-4) <= 8
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, before.bert.embeddings.word_embeddings.weight)


def test_only_one_method_says_what_is_trained() -> None:
    with pytest.raises(MethodError, match="each decides what is trained when"):
        Mix((LORA(), GradualUnfreezing()))


# --- what cannot be


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        (["query", "conv"], "lora adapts the role 'conv', and this model trains no weight of it; choose among .*query"),
        (["embedding"], "'bert.embeddings.word_embeddings', of role 'embedding', is a Embedding; leave that role out"),
    ],
)
def test_roles_that_the_model_lacks_or_peft_cannot_adapt_are_refused(
    arguments: Arguments, roles: list[str], said: str
) -> None:
    with pytest.raises(MethodError, match=said):
        trainer_of(_models.bert(), arguments(), LORA(roles=roles))


def test_a_weight_that_stands_in_two_places_is_refused() -> None:
    model = _models.bert()
    blocks = model.bert.encoder.layer
    blocks[1].attention.self.value.weight = blocks[0].attention.self.value.weight
    with pytest.raises(MethodError, match=r"'bert.encoder.layer.0.attention.self.value', of role 'value', .*too"):
        LORA().check(setting_of(model))


def test_a_model_that_has_adapters_is_refused(arguments: Arguments) -> None:
    model = _models.bert()
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["key"]), model)
    with pytest.raises(MethodError, match="into a model without any, and this one has some"):
        trainer_of(model, arguments(), LORA())


def test_without_peft_the_extra_is_named(arguments: Arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'evenkeel\[lora\]'"):
        trainer_of(_models.bert(), arguments(), LORA())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        *(({"rank": value}, "rank must be a whole number from 1") for value in (0, 1.5, True, "8", None)),
        *(({"alpha": value}, "alpha must be a .*number above 0") for value in (0, math.inf, math.nan, True, "16")),
        *(({"dropout": value}, "dropout must be a .*number from 0 to below 1") for value in (-0.1, 1, math.nan, "0")),
        *(({"roles": value}, r"write roles=\[query, value\]") for value in ("query", [], None, 3, {"query": 1})),
        ({"roles": ["quary"]}, "did you mean 'query'"),
        ({"roles": [3]}, "unknown role of lora '3'"),
        ({"roles": ["head"]}, "'head' in roles is trained whole"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(MethodError, match=said):
        LORA(**options)


class TestLowRankAdaptationContract(MethodContract):
    def make(self) -> Method:
        return LORA(rank=4)
