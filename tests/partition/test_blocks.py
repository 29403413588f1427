from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BartConfig,
    BartModel,
    CLIPConfig,
    CLIPModel,
    FunnelConfig,
    FunnelModel,
    MixtralConfig,
    MixtralModel,
    T5Config,
    T5Model,
    XLMConfig,
    XLMModel,
    ZambaConfig,
    ZambaModel,
)

from evenkeel import components
from evenkeel.partition._blocks import Stacks, find_stacks
from evenkeel.partition._names import plain_tree


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2, 2)


class OtherBlock(Block):
    pass


class Tower(nn.Module):
    """Some modules by name."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


def blocks(count: int = 2) -> nn.ModuleList:
    return nn.ModuleList(Block() for _ in range(count))


def stacks(model: nn.Module) -> Stacks:
    return find_stacks(plain_tree(model).modules)


def layers(model: nn.Module) -> dict[str, tuple[str, int]]:
    return {name: (block.stack, block.layer) for name, block in stacks(model).blocks.items()}


# --- what is a list of layers


def test_a_list_of_blocks_of_mixed_classes_is_a_stack() -> None:
    model = Tower(layers=nn.ModuleList([Block(), OtherBlock(), nn.Sequential(nn.Linear(2, 2)), Block()]))
    assert layers(model) == {f"layers.{index}": ("", index) for index in range(4)}


def test_one_block_alone_is_a_stack() -> None:
    assert layers(Tower(layers=blocks(1))) == {"layers.0": ("", 0)}


def test_lists_inside_blocks_are_no_stacks() -> None:
    assert layers(Tower(layers=nn.ModuleList(Tower(deep=blocks(3), x=Block()) for _ in range(2)))) == {
        "layers.0": ("", 0),
        "layers.1": ("", 1),
    }


def test_lists_of_lists_are_counted_through() -> None:
    model = Tower(blocks=nn.ModuleList([blocks(2), blocks(3)]))
    expected = ["blocks.0.0", "blocks.0.1", "blocks.1.0", "blocks.1.1", "blocks.1.2"]
    assert layers(model) == {name: ("", index) for index, name in enumerate(expected)}


def test_a_group_that_holds_nothing_but_alike_blocks_is_counted_through() -> None:
    model = Tower(groups=nn.ModuleList(Tower(inner=blocks(2)) for _ in range(2)))
    expected = ["groups.0.inner.0", "groups.0.inner.1", "groups.1.inner.0", "groups.1.inner.1"]
    assert layers(model) == {name: ("", index) for index, name in enumerate(expected)}


def test_a_dictionary_with_digits_for_keys_is_a_list() -> None:
    assert layers(Tower(layers=nn.ModuleDict({"0": Block(), "1": Block()}))) == {
        "layers.0": ("", 0),
        "layers.1": ("", 1),
    }
    assert layers(Tower(layers=nn.ModuleDict({"0": Block(), "first": Block()}))) == {}


@pytest.mark.parametrize(
    ("sequence", "count"),
    [
        (nn.Sequential(Block(), Block(), Block()), 3),
        (nn.Sequential(Block(), OtherBlock()), 0),  # parts of one thing in a row
        (nn.Sequential(Block()), 0),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), 0),
    ],
    ids=["alike", "unlike", "one", "leaves"],
)
def test_a_sequence_is_a_stack_where_its_modules_are_alike(sequence: nn.Sequential, count: int) -> None:
    assert layers(Tower(body=sequence)) == {f"body.{index}": ("", index) for index in range(count)}
    assert layers(sequence) == {str(index): ("", index) for index in range(count)}


@pytest.mark.parametrize(
    "module",
    [
        nn.ModuleList(nn.Linear(2, 2) for _ in range(3)),
        nn.ModuleList([nn.Linear(2, 2), nn.LayerNorm(2)]),
        nn.ModuleList([nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU())]),
        nn.ModuleList(),
        nn.ParameterList([torch.zeros(1)]),
    ],
    ids=["leaves", "unlike leaves", "no parameters", "empty", "parameters"],
)
def test_lists_of_leaves_and_of_nothing_are_no_stacks(module: nn.Module) -> None:
    assert layers(Tower(things=module, classifier=nn.Linear(2, 2))) == {}


@pytest.mark.parametrize("name", ["experts", "heads", "classifiers", "lm_heads", "adapters", "projections", "tail"])
def test_lists_of_what_stands_side_by_side_are_no_layers(name: str) -> None:
    assert layers(Tower(**{name: blocks(2)})) == {}
    assert layers(Tower(**{name: blocks(2), "layers": blocks(3)})) == {
        f"layers.{index}": ("", index) for index in range(3)
    }


# --- stacks side by side


def test_lists_of_equal_length_beside_a_stack_belong_to_its_layers() -> None:
    model = Tower(
        attentions=blocks(2),
        layer_norm1=nn.ModuleList(nn.LayerNorm(2) for _ in range(2)),
        ffns=blocks(2),
        extras=nn.ModuleList(nn.Linear(2, 2) for _ in range(3)),  # of another length
    )
    assert layers(model) == {
        f"{name}.{index}": ("", index) for name in ("attentions", "ffns", "layer_norm1") for index in range(2)
    }


def test_stacks_are_named_by_where_their_names_part() -> None:
    model = Tower(
        model=Tower(encoder=Tower(layers=blocks(2)), decoder=Tower(layers=blocks(1))), lm_head=nn.Linear(2, 2)
    )
    assert layers(model) == {
        "model.encoder.layers.0": ("encoder", 0),
        "model.encoder.layers.1": ("encoder", 1),
        "model.decoder.layers.0": ("decoder", 0),
    }
    found = stacks(model)
    assert found.tower_of("model.encoder.layers.1.fc1.weight") == "encoder"
    assert found.tower_of("model.encoder.norm.weight") == "encoder"
    assert found.tower_of("model.decoder") == "decoder"
    assert found.tower_of("lm_head.weight") == found.tower_of("model.encoders.x") == ""


def test_the_stack_that_stands_where_names_part_is_the_main_one() -> None:
    model = Tower(layers=blocks(2), vision=Tower(blocks=blocks(3)))
    assert layers(model) == {
        **{f"layers.{index}": ("", index) for index in range(2)},
        **{f"vision.blocks.{index}": ("vision", index) for index in range(3)},
    }


def test_a_vision_tower_with_two_stacks_beside_a_language_model() -> None:
    vision = Tower(global_transformer=Tower(layers=blocks(1)), transformer=Tower(layers=blocks(2)))
    model = Tower(model=Tower(vision_tower=vision, language_model=Tower(layers=blocks(3))))
    assert {stack for stack, _ in layers(model).values()} == {
        "vision_tower.global_transformer",
        "vision_tower.transformer",
        "language_model",
    }
    assert stacks(model).tower_of("model.vision_tower.transformer.norm") == "vision_tower.transformer"


def test_a_name_lies_in_the_block_that_it_begins_with() -> None:
    found = stacks(Tower(layers=blocks(11)))
    for name, layer in (("layers.1", 1), ("layers.1.fc1.weight", 1), ("layers.10.fc1", 10)):
        block = found.block_of(name)
        assert block is not None
        assert block.layer == layer
    assert found.block_of("layers.11.fc1") is found.block_of("layers") is found.block_of("") is None


# --- real models


def small(cls: Any, config: Any, **changes: Any) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = cls(config(**changes))
    return model


def test_one_block_that_stands_for_all_layers_is_layer_zero_and_shared() -> None:
    sizes = {"hidden_size": 8, "embedding_size": 4, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 8}
    parts = components(small(AlbertModel, AlbertConfig, num_hidden_layers=3, **sizes))
    inside = [part for part in parts if part.layer is not None]
    assert {(part.layer, part.shared) for part in inside} == {(0, True)}
    assert not any(part.shared for part in parts if part.layer is None)
    one = components(small(AlbertModel, AlbertConfig, num_hidden_layers=1, **sizes))
    assert not any(part.shared for part in one)  # it stands for itself alone


def test_a_group_of_several_shared_blocks_has_as_many_layers() -> None:
    sizes = {"hidden_size": 8, "embedding_size": 4, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 8}
    model = small(AlbertModel, AlbertConfig, num_hidden_layers=6, inner_group_num=2, **sizes)
    assert {(part.layer, part.shared) for part in components(model) if part.layer is not None} == {(0, True), (1, True)}


def test_parameters_that_several_layers_tie_are_shared() -> None:
    model = Tower(layers=nn.ModuleList(Tower(attn=Block(), own=nn.Linear(2, 2)) for _ in range(3)))
    model.layers[2].attn = model.layers[0].attn  # type: ignore[union-attr, index]
    parts = components(model)
    assert {part.name: (part.layer, part.aliases) for part in parts if part.shared} == {
        f"layers.0.attn.fc1.{leaf}": (0, (f"layers.2.attn.fc1.{leaf}",)) for leaf in ("weight", "bias")
    }


def test_zambas_shared_block_is_in_the_first_layer_that_uses_it() -> None:
    model = small(
        ZambaModel, ZambaConfig, vocab_size=8, hidden_size=16, attention_hidden_size=32, num_hidden_layers=4,
        num_attention_heads=2, attention_head_dim=16, num_key_value_heads=2, intermediate_size=16, attn_layer_period=2,
        attn_layer_offset=1, n_mamba_heads=2, mamba_expand=2, layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
        pad_token_id=0,
    )  # fmt: skip
    parts = components(model)
    assert parts.size == sum(parameter.numel() for parameter in model.parameters())
    shared = [part for part in parts if part.shared]
    assert shared
    assert {part.layer for part in shared} == {1}
    assert all(alias.startswith("layers.3.") for part in shared for alias in part.aliases)
    assert {part.layer for part in parts if part.layer is not None} == {0, 1, 2, 3}


def test_parallel_lists_are_layers_together() -> None:
    parts = components(small(XLMModel, XLMConfig, vocab_size=8, emb_dim=8, n_layers=2, n_heads=2))
    for layer in range(2):
        names = {part.name.split(".")[0] for part in parts.select(layer=layer)}
        assert names == {"attentions", "layer_norm1", "ffns", "layer_norm2"}
    assert len({part.path for part in parts}) == len(parts)


def test_nested_lists_are_one_stack() -> None:
    model = small(
        FunnelModel, FunnelConfig, vocab_size=8, block_sizes=[2, 1], num_decoder_layers=2, d_model=8, n_head=2,
        d_head=4, d_inner=8,
    )  # fmt: skip
    found = {(part.stack, part.layer) for part in components(model) if part.layer is not None}
    assert found == {("encoder", 0), ("encoder", 1), ("encoder", 2), ("decoder", 0), ("decoder", 1)}


@pytest.mark.parametrize(
    "model",
    [
        lambda: small(
            BartModel, BartConfig, vocab_size=8, d_model=8, encoder_layers=2, decoder_layers=1, encoder_ffn_dim=8,
            decoder_ffn_dim=8, encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=8,
        ),
        lambda: small(
            T5Model, T5Config, vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_decoder_layers=1, num_heads=2
        ),
    ],
    ids=["bart", "t5"],
)  # fmt: skip
def test_encoder_and_decoder_are_stacks(model: Any) -> None:
    parts = components(model())
    assert {(part.stack, part.layer) for part in parts if part.layer is not None} == {
        ("encoder", 0),
        ("encoder", 1),
        ("decoder", 0),
    }
    outside = {part.path for part in parts if part.layer is None and part.stack == "encoder"}
    assert outside
    assert all(path.startswith("encoder.") for path in outside)


def test_towers_of_text_and_pictures_are_stacks() -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = sizes | {"vocab_size": 8, "max_position_embeddings": 8}
    vision = sizes | {"num_hidden_layers": 3, "image_size": 8, "patch_size": 4}
    parts = components(small(CLIPModel, CLIPConfig, text_config=text, vision_config=vision, projection_dim=4))
    found: dict[str | None, set[int | None]] = {}
    for part in parts:
        found.setdefault(part.stack, set()).add(part.layer)
    assert found == {
        "text_model": {None, 0, 1},
        "vision_model": {None, 0, 1, 2},
        None: {None},
    }


def test_experts_are_no_layers() -> None:
    model = small(
        MixtralModel, MixtralConfig, vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=3,
    )  # fmt: skip
    parts = components(model)
    assert {part.layer for part in parts} == {None, 0, 1}
    assert {part.layer for part in parts if (part.role or "").startswith("expert_")} == {0, 1}
