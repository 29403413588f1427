"""What components do, seen from outside: see ``_behaviour`` for how."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.partition import _zoo
from tests.partition._behaviour import Probe, Verdict, key_bias_gradients
from torch import nn

from evenkeel import components
from evenkeel.partition import Components

NAMES = [*_zoo.FAST, "torch"]
EXPERTS = 4
# Without rotary positions (or sinks, which are no keys) softmax attention ignores a constant in all keys.
IGNORED = {
    *("gpt2", "bloom", "openai-gpt", "opt", "xlm", "gpt_bigcode-multi-query", "gpt_bigcode-multi-head", "falcon-rw"),
    *("bert", "roberta", "electra", "distilbert", "albert", "squeezebert", "bart", "funnel", "deberta-v2", "torch"),
}
ROTARY = {"gpt_neox", "persimmon", "glm", "gpt_oss", "qwen2_moe", "falcon-7b", "falcon-40b"}
NO_ATTENTION = {"mamba", "mamba2", "fnet"}
NO_FEED_FORWARD = {"mamba", "mamba2"}


@pytest.fixture(autouse=True)
def _every_step_shows() -> Iterator[None]:
    """Keep torch's encoder from running as one opaque operation."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


@functools.cache
def probe(name: str) -> Probe:
    model = _zoo.fast(name)
    return Probe(model, _zoo.inputs(model), components(model))


def probe_with(name: str, rules: dict[str, dict[str, Any]]) -> Probe:
    model = _zoo.fast(name)
    return Probe(model, _zoo.inputs(model), components(model, roles=rules))


def agree(verdict: Verdict, *, nothing: bool) -> None:
    assert verdict.objections == []
    assert verdict.silent == set()
    assert bool(verdict.proven) is not nothing


@pytest.mark.parametrize("name", NAMES)
def test_what_makes_queries_keys_and_values_changes_these_alone(name: str) -> None:
    agree(probe(name).attention(), nothing=name in NO_ATTENTION)


@pytest.mark.parametrize("name", NAMES)
def test_feed_forward_parts_and_experts_do_what_their_roles_say(name: str) -> None:
    agree(probe(name).feed_forward(EXPERTS), nothing=name in NO_FEED_FORWARD)


@pytest.mark.parametrize("name", NAMES)
def test_a_constant_in_all_keys_is_ignored_but_for_rotary_positions(name: str) -> None:
    """Proof without names or hooks: the gradient of the cut key bias is zero, that of query and value is not."""
    own = probe(name)
    found = key_bias_gradients(own.model, own.inputs, own.parts)
    assert bool(found) is (name in IGNORED | ROTARY)
    for path, (key, beside) in found.items():
        assert beside > 1e-3, path
        if name in IGNORED:
            assert key < 1e-4 * beside, path
        else:
            assert key > 1e-2 * beside, path


def heads(model: nn.Module) -> tuple[int, int, int]:
    """Return what a configuration says: heads of queries, of keys and values, and the size of a head."""
    config: Any = model.config
    queries = config.num_attention_heads
    if hasattr(config, "multi_query") and not getattr(config, "new_decoder_architecture", False):
        keys = 1 if config.multi_query else queries
    else:
        keys = getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None) or queries
    size = next((getattr(config, name) for name in ("head_dim", "d_head", "d_kv") if getattr(config, name, None)), None)
    return queries, keys, size or config.hidden_size // queries


# Low-rank, routed and linear attention have heads of other sizes, SqueezeBERT's convolutions are grouped.
OTHER_HEADS = {"deepseek_v3", "jetmoe", "minimax", "qwen3_next", "squeezebert", "torch", *NO_ATTENTION}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OTHER_HEADS])
def test_sizes_follow_from_the_heads_of_the_configuration(name: str) -> None:
    own = probe(name)
    queries, keys, size = heads(own.model)
    width = own.model.config.hidden_size
    for role, count in (("query", queries), ("key", keys), ("value", keys)):
        parts = own.parts.select(role=role)
        assert parts
        for part in parts:
            inputs = width if part.kind == "weight" and len(part.shape) > 1 else 1
            assert part.size == inputs * count * size, part.path


THIRDS = {"BloomAttention": {"query_key_value": "query | key | value"}}
CONFUSED: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "keys for queries": ("gpt2", {"GPT2Attention": {"c_attn": "key | query | value @-1"}}),
    "rows for columns": ("gpt2", {"GPT2Attention": {"c_attn": "query*2 | key*3 | value*3 @-2"}}),
    "thirds for interleaved heads": ("bloom", THIRDS),
    "one head too many": ("phi3", {"Phi3Attention": {"qkv_proj": "query*3 | key*3 | value*2"}}),
    "query for value": ("bert", {"BertSelfAttention": {"value": "query", "query": "value"}}),
}
CONFUSED_FEED_FORWARD: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "gate for in": ("llama", {"LlamaMLP": {"gate_proj": "ffn_in", "up_proj": "ffn_gate"}}),
    "out for in": ("gpt2", {"GPT2MLP": {"c_fc": "ffn_out", "c_proj": "ffn_in"}}),
    "in before gate": ("phi3", {"Phi3MLP": {"gate_up_proj": "ffn_in | ffn_gate"}}),
    "halves for interleaved": ("gpt_oss", {"GptOssExperts": {"gate_up_proj": "expert: expert_gate | expert_in @-1"}}),
    "attention for feed-forward": (
        "bert",
        {"BertIntermediate": {"dense": "ffn_gate"}, "BertSelfOutput": {"dense": "ffn_in"}},
    ),
}


@pytest.mark.parametrize("name", CONFUSED)
def test_a_wrong_cut_of_the_attention_is_caught(name: str) -> None:
    assert probe_with(*CONFUSED[name]).attention().objections


@pytest.mark.parametrize("name", CONFUSED_FEED_FORWARD)
def test_a_wrong_role_in_the_feed_forward_part_is_caught(name: str) -> None:
    assert probe_with(*CONFUSED_FEED_FORWARD[name]).feed_forward(EXPERTS).objections


def test_experts_that_are_counted_along_the_wrong_way_are_caught() -> None:
    """Slices across all experts reach every token, not those of one expert."""
    own = probe("mixtral")
    part = own.parts.select(role="expert_out")[0]
    piece = part.pieces[0]
    whole = piece.tensor().shape
    across = components(own.model, roles={"MixtralExperts": {"down_proj": "expert*num_experts: expert_out"}})
    assert whole[0] == EXPERTS
    assert [one.size for one in across.select(role="expert_out")] == [
        one.size for one in own.parts.select(role="expert_out")
    ]
    shifted = _shifted(own.parts)
    assert any(
        "reaches the tokens" in text for text in Probe(own.model, own.inputs, shifted).feed_forward(EXPERTS).objections
    )


def _shifted(parts: Components) -> Components:
    """Give each expert's output layer the entries of the next one."""
    from dataclasses import replace

    own = list(parts.select(role="expert_out", layer=0))
    after = [*own[1:], own[0]]
    return Components([replace(part, pieces=other.pieces) for part, other in zip(own, after, strict=True)])


def test_thirds_of_interleaved_heads_have_a_key_bias_that_is_not_ignored() -> None:
    own = probe_with("bloom", THIRDS)
    assert any(key > 1e-2 * beside for key, beside in key_bias_gradients(own.model, own.inputs, own.parts).values())


def test_a_probe_leaves_the_model_as_it_was() -> None:
    own = probe("bloom")
    before = {name: tensor.clone() for name, tensor in own.model.state_dict().items()}
    own.attention()
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.model.state_dict().items())
