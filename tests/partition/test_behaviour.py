"""What components do, seen from outside: see ``_behaviour`` for how."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests._tiers import few
from tests.partition import _zoo
from tests.partition._behaviour import Probe, Verdict, key_bias_gradients
from torch import nn

from evenkeel import components
from evenkeel.partition import Components

pytestmark = pytest.mark.no_cover  # tracing would double its time, for lines that other tests of components go through
NAMES = [*_zoo.FAST, "torch"]
# One of each kind of attention and of feed-forward part.
FIRST = {
    *("bert", "gpt2", "bloom", "phi3", "llama", "albert", "bart", "squeezebert", "torch"),
    *("falcon-40b", "gpt_bigcode-multi-query", "deberta-v2", "deepseek_v3", "mixtral", "gpt_oss", "jamba"),
}
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


# Parameters mix the scores of talking heads before the softmax, where the recorder loses sight of them.
@pytest.mark.parametrize("name", few([name for name in NAMES if name != "deberta-talking-heads"], FIRST))
def test_what_makes_queries_keys_and_values_changes_these_alone(name: str) -> None:
    agree(probe(name).attention(), nothing=name in NO_ATTENTION)


@pytest.mark.parametrize("name", few(NAMES, FIRST))
def test_feed_forward_parts_and_experts_do_what_their_roles_say(name: str) -> None:
    agree(probe(name).feed_forward(EXPERTS), nothing=name in NO_FEED_FORWARD)


@pytest.mark.parametrize("name", few(NAMES, FIRST))
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


@pytest.mark.parametrize("name", few([name for name in NAMES if name not in OTHER_HEADS], FIRST))
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


# Where an oracle objects and is wrong: to what, and what the module's own code does.
OBJECTIONS = {
    "deepseek_v4": (
        r"layer\.\d+\.expert_.*reaches",
        "its first layers choose experts by a hash of the word, not by scores",
    ),
    "inkling2_text": (
        r"expert_in.*activation",
        "what multiplies the gate is capped by a tanh: it enters an activation too",
    ),
    "lilt": (r"layout_(query|key)", "the scores of text and layout are added, and the recorder follows the text's"),
    "mra": (r"value.*enters nothing", "without its CUDA kernel its attention gives zeros"),
    "nystromformer": (r"value.*enters conv", "a convolution over the values goes around the attention"),
    "xlstm": (r"(query|key|value)\.weight", "keys meet values before queries do, which the recorder takes for scores"),
    "zaya": (r"changes \['key', 'query'\]", "means of queries and keys are added to both before they meet"),
}
# What a forward pass with text alone does not reach, by path, and why.
SILENT = {
    "canine": (r"^final_char_encoder\..*ffn_out", "the classifier reads its first encoders alone"),
    "deepseek_v4": (r"compressor|expert_", "eight tokens fill no window of the compressors; a hash chooses experts"),
    "gemma3": (r"^vision_tower", "no image"),
    "git": (r"^image_encoder", "no image"),
    "got_ocr2": (r"^vision_tower", "no image"),
    "lilt": (r"layout_", "see above"),
    "luke": (r"entity", "no entities"),
    "modernvbert": (r"^vision_model", "no image"),
    "moss_transcribe_diarize": (r"^audio_tower", "no sound"),
    "phi4_multimodal": (r"^embed_tokens_extend", "no image and no sound"),
    "phimoe": (r"expert_", "its router chooses one expert after the other, by maximum"),
    "qwen3_5": (r"^visual", "no image"),
    "rwkv": (r"(key|value)\.weight", "no scores: its attention is a running sum"),
    "t5gemma2": (r"vision_tower", "no image"),
    "ultravbert": (r"^vision_model", "no image"),
    "zaya": (r"expert_", "its router scores one choice more, that of no expert"),
}
# Biases of keys that matter without rotary positions.
KEY_BIAS_MATTERS = {"yoso": "its attention is no softmax but a sum over hash buckets"}
NOT_RUN = {
    "dbrx": "its default configuration lacks rope_theta; the fast subset has one that is given",
    "dots3_note": "an audio tower of sizes of its own names",
    "gemma3n": "needs Pillow",
    "gemma4_assistant": "its default configuration is refused by its own check",
    "gemma4_unified_assistant": "its default configuration is refused by its own cache",
    "layoutlmv2": "needs detectron2",
    "musicgen": "registered with the configuration of the whole, which its decoder cannot read",
    "musicgen_melody": "registered with the configuration of the whole, which its decoder cannot read",
    "perceiver": "sizes of its own names",
    "qwen4_exp": "its default configuration leaves out what it needs",
    "qwen4_exp_text": "its default configuration leaves out what it needs",
}


def rotary(model: nn.Module) -> bool:
    config: Any = model.config.get_text_config()
    return bool(getattr(config, "rope_parameters", None)) or config.model_type == "roformer"


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize(("kind", "model_type"), _zoo.TYPES)
def test_every_type_behaves_as_its_roles_say(kind: str, model_type: str) -> None:
    if model_type in NOT_RUN:
        with pytest.raises(_zoo.UnbuildableError):
            _zoo.tiny(kind, model_type)
        return
    model = _zoo.tiny(kind, model_type)
    own = Probe(model, _zoo.inputs(model), components(model))
    attention, feed_forward = own.attention(), own.feed_forward(EXPERTS)
    objections = attention.objections + feed_forward.objections
    if model_type in OBJECTIONS:
        assert objections
        assert [text for text in objections if not re.search(OBJECTIONS[model_type][0], text)] == []
    else:
        assert objections == []
    allowed = SILENT.get(model_type, ("$^", ""))[0]
    assert {path for path in attention.silent | feed_forward.silent if not re.search(allowed, path)} == set()
    assert attention.proven | feed_forward.proven or model_type in {"mamba", "mamba2", "falcon_mamba"}
    if model_type == "reformer" or rotary(model) or model_type in KEY_BIAS_MATTERS:
        return  # (Reformer's own backward refuses to run outside training, and it has no biases.)
    for path, (key, beside) in key_bias_gradients(model, own.inputs, own.parts).items():
        assert key < 1e-4 * beside or max(key, beside) < 1e-7, path


@pytest.mark.slow
@pytest.mark.matrix
def test_exceptions_are_types_that_there_are() -> None:
    types = {model_type for _, model_type in _zoo.TYPES}
    assert OBJECTIONS.keys() | SILENT.keys() | KEY_BIAS_MATTERS.keys() | NOT_RUN.keys() <= types
