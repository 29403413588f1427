"""Every architecture that transformers can classify texts or go on writing with, shrunk; and some of torch's own.

``build`` keeps a type's default configuration but for its depth, and reads no weights (``meta`` device). ``tiny``
shrinks everything else as well and gives a model that runs on a CPU in milliseconds, with random weights in all
parameters: what starts at zero or one would hide what it does.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

__all__ = ["FAST", "TYPES", "UnbuildableError", "build", "fast", "inputs", "tiny"]

KINDS = {"lm": AutoModelForCausalLM, "seq": AutoModelForSequenceClassification}
TYPES = [("lm", name) for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES] + [
    ("seq", name) for name in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
]
DEEPEST = 12  # layers that are kept at most, unless a configuration needs all of them
TOKENS = (2, 8)

_DEPTHS = {
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "num_blocks"),
    *("num_encoder_layers", "num_decoder_layers", "conf_num_hidden_layers", "depth"),
}
# Fields that say after how many layers something comes, so that as many are kept.
_UP_TO = ("attn_layer_period", "first_k_dense_replace", "moe_layer_start_index", "num_dense_layers", "layer_group_size")
# Sizes by the names that configurations give them.
_SMALL = {
    32: (
        "hidden_size d_model n_embd emb_dim dim embedding_size embedding_dim word_embed_proj_dim lru_width d_embed "
        "input_embedding_size output_embedding_size pooler_hidden_size out_hidden_size hidden_size_global "
        "attention_hidden_size prediction_head_size"
    ),
    48: (
        "intermediate_size moe_intermediate_size encoder_ffn_dim decoder_ffn_dim d_ff ffn_dim d_inner hidden_dim "
        "n_inner shared_expert_intermediate_size shared_intermediate_size ffn_hidden_size expert_ffn_hidden_size "
        "intermediate_size_mlp dff dim_ff dense_intermediate_size moe_shared_expert_intermediate_size "
        "shared_experts_intermediate_size feed_forward_size mlp_dim"
    ),
    64: (
        "vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size max_position_embeddings "
        "n_positions n_ctx mamba_d_ssm "
        "encoder_hash_byte_group_vocab pronunciation_vocab_size shape_vocab_size entity_vocab_size"
    ),
    8: (
        "head_dim d_kv d_head dim_head kv_channels qk_rope_head_dim qk_nope_head_dim v_head_dim "
        "linear_key_head_dim linear_value_head_dim linear_head_dim index_head_dim swa_head_dim attention_head_size "
        "global_head_dim mamba_d_head mamba_headdim mamba_head_dim rotary_dim attention_head_dim ssm_state_size "
        "mamba_d_state state_size time_step_rank mamba_dt_rank chunk_size mamba_chunk_size adapter_rank "
        "laurel_rank gated_norm_rank hc_lowrank hidden_size_per_layer_input mamba_n_heads mamba_num_heads "
        "n_mamba_heads entity_emb_size"
    ),
    16: ("qk_head_dim kv_lora_rank q_lora_rank o_lora_rank router_hidden_size"),
    4: (
        "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
        "attention_heads num_encoder_attention_heads num_decoder_attention_heads linear_num_value_heads "
        "linear_num_heads index_n_heads swa_num_attention_heads num_query_groups num_experts n_routed_experts "
        "num_local_experts moe_num_experts"
    ),
    2: (
        "num_key_value_heads num_kv_heads kv_n_heads linear_num_key_heads swa_num_key_value_heads "
        "num_experts_per_tok num_global_key_value_heads num_experts_per_token moe_topk moe_k moe_top_k "
        "top_k_experts index_topk n_shared_experts"
    ),
    1: ("n_group topk_group num_expert_group n_groups mamba_n_groups mamba_ngroups"),
}
_SIZES = {name: size for size, names in _SMALL.items() for name in names.split()}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_ZAMBA = {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2}
_ZAMBA |= {"attention_hidden_size": 64, "attention_head_dim": 16}
# What a type needs beyond that to be built or run at this size.
_CHANGES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "bart": {"eos_token_id": 2},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "dbrx": {"max_seq_len": 64},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "dots3_note": {"num_key_value_heads": 4},
    "dots3_note_text": {"num_key_value_heads": 4},
    "esm": {"vocab_size": 64, "mask_token_id": 3},
    "esmc": {"num_key_value_heads": 4},
    "funnel": {"block_sizes": [1, 1]},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4, "visual_embed": False},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
    "lilt": {"hidden_size": 48},
    "longcat_flash": {"zero_expert_num": 0},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 8},
    "mistral4": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": (8, 8),
        "axial_pos_embds_dim": (16, 16),
        "hash_seed": 0,
        "is_decoder": False,
        "num_hidden_layers": 2,
    },
    "t5": {"decoder_start_token_id": 0},
    "xmod": {"default_language": "en_XX"},
    "zamba": _ZAMBA,
    "zamba2": _ZAMBA,
    "zaya": {"num_experts_per_tok": 1},
}
# What keeps the pattern of a type's layers when fewer are built.
_PATTERNS: dict[str, dict[str, Any]] = {
    "gemma3n_text": {"num_kv_shared_layers": 1},
    "zamba": {"num_hidden_layers": 8, "layers_block_type": None},
}
_NOISE = {"mobilebert": 0.03, "markuplm": 0.05}  # where 0.3 grows from layer to layer, or closes a tanh
_BIG = {"perceiver"}  # nothing in it is called as elsewhere, so nothing shrinks


class UnbuildableError(Exception):
    """A type that transformers cannot build from the configuration that it is given, and why."""


def build(kind: str, model_type: str) -> nn.Module:
    """Build a type from its default configuration with fewer layers, without weights."""
    try:
        config = _shrunk(CONFIG_MAPPING[model_type](), sizes=False, special=_PATTERNS.get(model_type))
    except Exception as error:
        raise UnbuildableError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    with torch.device("meta"):
        return _made(kind, config)


def _made(kind: str, config: PreTrainedConfig, **options: Any) -> nn.Module:
    try:
        model: nn.Module = KINDS[kind].from_config(config, **options)
    except Exception as error:  # whatever transformers' code does with its own defaults
        raise UnbuildableError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    return model


def tiny(kind: str, model_type: str, *, meta: bool = False, seed: int = 0, **changes: Any) -> nn.Module:
    """Build a model of a type that runs at once: two layers or as many as show all kinds of them, width 32, 4 heads."""
    if model_type in _BIG:
        raise UnbuildableError(f"{model_type} has sizes of its own names")
    special = _CHANGES.get(model_type, {}) | changes
    if model_type == "reformer" and kind == "lm":
        special["is_decoder"] = True
    try:
        config = _shrunk(CONFIG_MAPPING[model_type](), sizes=True, special=special)
    except Exception as error:
        raise UnbuildableError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    for part in (config, *(value for value in vars(config).values() if isinstance(value, PreTrainedConfig))):
        part._experts_implementation = "eager"
        part.use_cache = False
    if meta:
        with torch.device("meta"):
            return _made(kind, config)
    torch.manual_seed(seed)
    noise = _NOISE.get(model_type, 0.3)
    return _random(_made(kind, config, attn_implementation="eager"), seed, noise)


def _random(model: nn.Module, seed: int, size: float = 0.3) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            start = torch.where(torch.isfinite(parameter) & (parameter.abs() < 10), parameter, 0)  # some start empty
            parameter.copy_(start + size * noise)
    return model.eval()


def inputs(model: nn.Module) -> dict[str, Any]:
    """Return a batch of token numbers, each text with the end that some look for, and what else is needed."""
    ids = torch.randint(5, 30, TOKENS, generator=torch.Generator().manual_seed(1))
    end = getattr(getattr(model, "config", None), "eos_token_id", None)
    if isinstance(end, int) and end < 64:
        ids[:, -1] = end
    given: dict[str, Any] = {"input_ids": ids}
    names = [name.rpartition(".")[2] for name, _ in model.named_modules()]
    wanted = inspect.signature(model.forward).parameters
    if {"encoder_attn", "cross_attn"} & set(names) and "encoder" not in names:
        # a decoder on its own, which attends to what an encoder would give it
        states = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2))
        for name, value in (("encoder_outputs", (states,)), ("encoder_hidden_states", states)):
            if name in wanted:
                return given | {name: value}
    return given


def _shrunk(default: PreTrainedConfig, *, sizes: bool, special: Mapping[str, Any] | None = None) -> PreTrainedConfig:
    """Make a configuration of the same class with fewer layers and, with ``sizes``, of small sizes."""
    depth, kept = _depth(default), _kept(default)
    changes: dict[str, Any] = {}
    for name, value in vars(default).items():
        if isinstance(value, PreTrainedConfig):
            changes[name] = _shrunk(value, sizes=sizes)
        elif name.startswith("_") or isinstance(value, bool):
            continue
        elif isinstance(value, int) and name in _DEPTHS:
            changes[name] = min(value, kept)
        elif isinstance(value, list) and len(value) == depth > kept:
            changes[name] = value[:kept]
        elif sizes and isinstance(value, int) and name in _SIZES:
            changes[name] = _SIZES[name]
    if sizes:
        changes["pad_token_id"] = 0
        if "kv_lora_rank" in changes:  # low-rank attention has as many heads of keys as of queries
            changes["num_key_value_heads"] = 4
        if "eos_token_id" in vars(default) and isinstance(default.eos_token_id, int):
            changes["eos_token_id"] = 2
    return type(default)(**changes | dict(special or {}))


def _depth(config: PreTrainedConfig) -> int:
    return next((value for name, value in vars(config).items() if name in _DEPTHS and isinstance(value, int)), 0)


def _kept(config: PreTrainedConfig) -> int:
    """Return how many layers show all kinds of layers that a configuration lists."""
    depth, kept = _depth(config), 2
    for value in vars(config).values():
        if isinstance(value, list | tuple) and len(value) == depth > 2:
            words = [str(item) for item in value]
            if len(set(words)) <= 4:  # kinds of layers, not one number for each
                kept = max(kept, *(words.index(word) + 1 for word in set(words)))
    for name in _UP_TO:
        value = getattr(config, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            kept = max(kept, value + 1)
    return min(kept, DEEPEST)


class TorchEncoder(nn.Module):
    """torch's own encoder, as somebody without transformers would use it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 48, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.classifier = nn.Linear(32, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.classifier(self.encoder(self.embedding(input_ids)).mean(1))


_DBRX = {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0}}
_DBRX |= {"ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2}}
# Name -> kind, type, changes. All fused layouts are here, and whatever else is peculiar.
FAST: dict[str, tuple[str, str, dict[str, Any]]] = {
    name: ("lm", name, {})
    for name in (
        *("gpt2", "bloom", "gpt_neox", "gpt_neox_japanese", "persimmon", "codegen", "mpt", "phi3", "glm", "openai-gpt"),
        *("minimax", "jetmoe", "mixtral", "gpt_oss", "llama4_text", "deepseek_v3", "mamba", "mamba2", "xlnet", "xlm"),
        *("llama", "gemma2", "opt", "gptj", "qwen3_next", "granitemoehybrid", "bamba"),
    )
} | {
    name: ("seq", name, {})
    for name in (
        *("bert", "modernbert", "deberta", "deberta-v2", "t5", "bart", "albert", "funnel", "qwen2_moe", "jamba"),
        *("distilbert", "electra", "roberta", "fnet", "squeezebert"),
    )
}
FAST |= {
    "dbrx": ("lm", "dbrx", _DBRX),
    "gpt_bigcode-multi-query": ("lm", "gpt_bigcode", {"multi_query": True}),
    "gpt_bigcode-multi-head": ("lm", "gpt_bigcode", {"multi_query": False}),
    "deberta-talking-heads": ("seq", "deberta", {"talking_head": True, "relative_attention": True}),
    "falcon-7b": ("lm", "falcon", {"bias": True}),
    "falcon-40b": ("lm", "falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}),
    "falcon-rw": (
        "lm",
        "falcon",
        {"multi_query": False, "parallel_attn": False, "alibi": True, "bias": True, "num_kv_heads": 4},
    ),
}


def fast(name: str, *, meta: bool = False) -> nn.Module:
    """Build a model of the fast subset."""
    if name == "torch":
        return _random(TorchEncoder(), 0)
    kind, model_type, changes = FAST[name]
    return tiny(kind, model_type, meta=meta, **changes)
