from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests import _models
from tests.partition import _zoo
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parallel import DataParallel
from transformers import AlbertConfig, AlbertForSequenceClassification, PreTrainedModel

from evenkeel import components
from evenkeel.errors import ComponentError
from evenkeel.partition import ModelBlock, blocks

# torch's compiler warns of its own imports, and PEFT uses an old name of transformers' switch.
COMPILER = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
CHECKPOINTING = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")


def layer() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU())


def places(model: nn.Module) -> list[tuple[str, str | None, int, bool]]:
    return [(block.name, block.stack, block.layer, block.shared) for block in blocks(model)]


def by_components(model: nn.Module) -> dict[tuple[str | None, int | None], set[str]]:
    """The parameters of every layer, as the components know them."""
    found: dict[tuple[str | None, int | None], set[str]] = {}
    for part in components(model):
        if part.layer is not None:
            found.setdefault((part.stack, part.layer), set()).update(piece.name for piece in part.pieces)
    return found


def by_blocks(model: nn.Module) -> dict[tuple[str | None, int | None], set[str]]:
    return {(block.stack, block.layer): set(block.parameters) for block in blocks(model)}


def run_order(model: nn.Module, found: tuple[ModelBlock, ...], **given: Any) -> list[str]:
    """The names of the blocks in the order in which a forward pass runs them."""
    seen: list[str] = []
    handles = [
        block.module.register_forward_hook(lambda *_, name=block.name: seen.append(name))  # type: ignore[misc]
        for block in found
    ]
    try:
        with torch.no_grad():
            model(**given)
    finally:
        for handle in handles:
            handle.remove()
    return seen


# --- real architectures


@pytest.mark.parametrize("make", _models.ALL.values(), ids=_models.ALL.keys())
def test_a_forward_pass_runs_every_block_once_and_in_order(make: Callable[[int], PreTrainedModel]) -> None:
    model = make(3)
    found = blocks(model)
    assert [(block.stack, block.layer, block.shared) for block in found] == [(None, layer, False) for layer in range(3)]
    assert all(model.get_submodule(block.name) is block.module for block in found)
    assert run_order(model, found, input_ids=_models.Rows(2).ids) == [block.name for block in found]


@pytest.mark.parametrize("name", ["deberta-v2", "modernbert", "gpt2", "t5", "bart"])
def test_the_zoo_runs_its_blocks_in_order(name: str) -> None:
    model = _zoo.fast(name)
    found = blocks(model)
    stacks = ["encoder", "decoder"] if name in ("t5", "bart") else [None]
    assert [(block.stack, block.layer) for block in found] == [(stack, layer) for stack in stacks for layer in (0, 1)]
    assert run_order(model, found, **_zoo.inputs(model)) == [block.name for block in found]


@pytest.mark.parametrize("name", [*_zoo.FAST, "torch"])
def test_blocks_have_the_parameters_that_components_place_in_their_layer(name: str) -> None:
    model = _zoo.fast(name, meta=name != "torch")
    assert by_blocks(model) == by_components(model)
    known = dict(model.named_parameters(remove_duplicate=False))
    assert all(known[name] is tensor for block in blocks(model) for name, tensor in block.parameters.items())


def test_the_one_block_of_albert_is_shared() -> None:
    config = AlbertConfig(
        vocab_size=32, hidden_size=16, embedding_size=8, num_attention_heads=2, intermediate_size=16,
        num_hidden_layers=3, max_position_embeddings=16,
    )  # fmt: skip
    model = AlbertForSequenceClassification(config)
    found = blocks(model)
    assert places(model) == [("albert.encoder.albert_layer_groups.0.albert_layers.0", None, 0, True)]
    assert run_order(model, found, input_ids=_models.Rows(2).ids) == [found[0].name] * 3


def test_lists_beside_the_layers_give_parameters_and_no_blocks() -> None:
    found = blocks(_zoo.fast("xlm", meta=True))
    assert [block.name for block in found] == ["transformer.attentions.0", "transformer.attentions.1"]
    for block in found:
        lists = {name.split(".")[1] for name in block.parameters}
        assert lists == {"attentions", "layer_norm1", "ffns", "layer_norm2"}
        assert {name.split(".")[2] for name in block.parameters} == {str(block.layer)}


# --- modules that several layers use


def test_a_module_that_is_several_layers_is_one_block() -> None:
    twice, once = layer(), layer()
    model = nn.ModuleDict({"layers": nn.ModuleList([twice, once, twice])})
    assert places(model) == [("layers.0", None, 0, True), ("layers.1", None, 1, False)]
    assert [list(block.parameters) for block in blocks(model)] == [
        [f"layers.{number}.0.{leaf}" for leaf in ("weight", "bias")] for number in range(2)
    ]


# --- no blocks, and what is no model


def test_a_model_without_layers_has_no_blocks() -> None:
    assert blocks(nn.Linear(2, 2)) == ()
    assert blocks(nn.Sequential()) == ()


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ComponentError, match=r"blocks\(\) was given a list; it needs the model itself"):
        blocks([layer()])  # type: ignore[arg-type]


# --- frozen and wrapped models


def test_frozen_parameters_belong_to_their_layer_too() -> None:
    model = _models.bert()
    expected = by_blocks(model)
    model.requires_grad_(requires_grad=False)
    assert by_blocks(model) == expected


def checkpointed(model: nn.Module) -> nn.Module:
    layers = model.get_submodule("bert.encoder.layer")
    for key, child in list(layers.named_children()):
        setattr(layers, key, checkpoint_wrapper(child))
    return model


@COMPILER
@pytest.mark.parametrize("wrap", [DataParallel, torch.compile, checkpointed], ids=["parallel", "compile", "checkpoint"])
def test_wrappers_change_neither_names_nor_modules(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = _models.bert()
    plain = blocks(model)
    wrapped = blocks(wrap(model))
    assert wrapped == plain
    assert [block.module for block in wrapped] == [block.module for block in plain]
    assert [list(block.parameters) for block in wrapped] == [list(block.parameters) for block in plain]


@CHECKPOINTING
def test_adapters_are_in_the_layer_that_they_adapt() -> None:
    model = _models.bert()
    plain = {block.layer: dict(block.parameters) for block in blocks(model)}
    adapted = get_peft_model(model, LoraConfig(target_modules=["query"], r=1))
    for block in blocks(adapted):
        expected: dict[str, Tensor] = {**plain[block.layer]}
        assert {name: block.parameters[name] for name in expected} == expected
        prefix = f"bert.encoder.layer.{block.layer}.attention.self.query.lora"
        added = sorted(set(block.parameters) - set(expected))
        assert added == [f"{prefix}_A.default.weight", f"{prefix}_B.default.weight"]
