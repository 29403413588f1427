"""The tree of values, on models whose components are known in advance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

from evenkeel.cli._fold import OUTSIDE, Node, fold, names_alike, ranges, totals, uncut
from evenkeel.partition import Components, components


@pytest.fixture(scope="module")
def gpt2() -> Components:
    with torch.device("meta"):
        return components(GPT2LMHeadModel(GPT2Config(n_layer=3, n_embd=8, n_head=2, vocab_size=10, n_positions=4)))


@pytest.fixture(scope="module")
def mixtral() -> Components:
    config = MixtralConfig(
        vocab_size=10,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=3,
    )
    with torch.device("meta"):
        return components(MixtralForCausalLM(config))


def find(nodes: Sequence[Node], label: str) -> Node:
    return next(node for node in walk(nodes) if node.label == label)


def walk(nodes: Sequence[Node]) -> Iterator[Node]:
    for node in nodes:
        yield node
        yield from walk(node.children)


def test_alike_layers_are_told_once(gpt2: Components) -> None:
    outside, layers = fold(gpt2)
    assert outside.label == OUTSIDE
    assert [child.label for child in outside.children] == ["embedding.word", "embedding.position", "norm"]
    assert outside.children[0].tied == ("lm_head.weight",)
    assert (layers.label, layers.count) == ("layer 0-2, 3 alike", 3)
    assert layers.size == 3 * sum(child.size for child in layers.children)
    assert outside.size + layers.size == gpt2.size


def test_weight_and_bias_share_a_line_and_cuts_of_one_tensor_a_node(gpt2: Components) -> None:
    fused = find(fold(gpt2), "attn.c_attn")
    assert fused.cut == "query | key | value @-1"
    assert [(line.label, line.role, line.shapes, line.size) for line in fused.children] == [
        (role, role, ((8, 8), (8,)), 72) for role in ("query", "key", "value")
    ]


def test_stacked_experts_are_one_line(mixtral: Components) -> None:
    tree = fold(mixtral)
    gate = find(tree, "expert_gate.0-2")
    assert (gate.count, gate.shapes, gate.size) == (3, ((16, 8),), 3 * 16 * 8)
    assert [line.label for line in find(tree, "mlp.experts.gate_up_proj").children] == [
        "expert_gate.0-2",
        "expert_in.0-2",
    ]


@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
def test_unfolded_every_component_has_its_line(name: str, request: pytest.FixtureRequest) -> None:
    parts: Components = request.getfixturevalue(name)
    lines = [node for node in walk(fold(parts, alike=False)) if not node.children]
    assert len(lines) == len(parts)
    assert sorted(line.shapes for line in lines) == sorted((part.shape,) for part in parts)
    assert sum(node.size for node in fold(parts, alike=False)) == parts.size


def test_a_bias_alone_says_so() -> None:
    config = BertConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    head = find(fold(components(BertForMaskedLM(config))), "head.bias")
    assert (head.shapes, head.tied) == (((10,),), ("cls.predictions.decoder.bias",))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.Module()
        self.attn.qkv = nn.Linear(4, 12)
        self.mystery = nn.ParameterList([nn.Parameter(torch.zeros(width)) for _ in range(2)])


class Two(nn.Module):
    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(map(Block, widths))})
        self.decoder = nn.ModuleDict({"layers": nn.ModuleList(map(Block, widths[:1]))})


def test_stacks_have_a_node_each_and_only_alike_layers_are_folded() -> None:
    parts = components(Two([3, 5, 3, 5, 3]))
    encoder, decoder = fold(parts)
    assert [child.label for child in encoder.children] == ["layer 0-4 by 2, 3 alike", "layer 1, 3, 2 alike"]
    assert [(child.label, child.count) for child in decoder.children] == [("layer 0", 1)]
    assert encoder.size + decoder.size == parts.size


def test_what_is_fused_and_not_cut_is_found() -> None:
    parts = components(Two([3, 3]))
    assert [part.path for part in uncut(parts)] == [part.path for part in parts if part.path.endswith("qkv.weight")]
    assert names_alike(uncut(parts)) == {"encoder.layers.#.attn.qkv.weight": 2, "decoder.layers.#.attn.qkv.weight": 1}


def test_cut_tensors_are_not_taken_for_uncut(gpt2: Components) -> None:
    assert uncut(gpt2) == ()


def test_numbers_with_gaps_are_not_folded() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, many in (("a", 2), ("b", 1)):
                self.add_module(name, nn.ModuleList(nn.ParameterList([torch.zeros(2)] * many) for _ in range(many)))

    labels = [node.label for node in walk(fold(components(Net()))) if not node.children]
    assert len(labels) == len(set(labels))
    assert sum(node.size for node in fold(components(Net()))) == components(Net()).size


def test_totals_add_up(mixtral: Components) -> None:
    rows = totals(mixtral)
    assert sum(row.size for row in rows) == mixtral.size
    assert sum(row.components for row in rows) == len(mixtral)
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert [row.size for row in rows] == sorted((row.size for row in rows), reverse=True)
    assert next(row for row in rows if row.role == "expert_gate").components == 2 * 3
    assert totals([]) == ()


@given(st.sets(st.integers(0, 40), min_size=1))
def test_ranges_can_be_read_back(numbers: set[int]) -> None:
    found: set[int] = set()
    for text in ranges(sorted(numbers)).split(", "):
        run, _, step = text.partition(" by ")
        first, _, last = run.partition("-")
        found |= set(range(int(first), int(last or first) + 1, int(step or 1)))
    assert found == numbers
