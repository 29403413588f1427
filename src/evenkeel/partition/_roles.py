"""Roles as data: which names of modules stand for what.

Structure gives the layer (``_discover.py``); the tables here give the role and the word for it in a component's path.
A row reads: the end of the module's dotted name as a regular expression, its role, its word in the path. The first
row that fits holds, so the longer names stand first. ``{0}`` in the word is the expression's first group.
"""

from __future__ import annotations

import re

__all__ = ["IN_BLOCK", "OUTSIDE", "ROLES", "find_role"]

ROLES = (
    "embedding",
    "query",
    "key",
    "value",
    "attention_output",
    "ffn_in",
    "ffn_gate",
    "ffn_out",
    "norm",
    "pooler",
    "head",
    "other",
)

Rule = tuple[str, str, str]

# Names relative to the block: BERT, RoBERTa, ELECTRA, MPNet; DistilBERT; Llama and its kin; BART, OPT.
IN_BLOCK: tuple[Rule, ...] = (
    (r"encoder_attn\.q_proj", "query", "cross_query"),
    (r"encoder_attn\.k_proj", "key", "cross_key"),
    (r"encoder_attn\.v_proj", "value", "cross_value"),
    (r"encoder_attn\.out_proj", "attention_output", "cross_attention_output"),
    (r"encoder_attn_layer_norm", "norm", "cross_attention_norm"),
    (r"query|query_proj|q_proj|q_lin|attn\.q", "query", "query"),
    (r"key|key_proj|k_proj|k_lin|attn\.k", "key", "key"),
    (r"value|value_proj|v_proj|v_lin|attn\.v", "value", "value"),
    (
        r"attention\.output\.dense|attention\.dense|o_proj|out_lin|(?:self_)?attn\.out_proj|attn\.o",
        "attention_output",
        "attention_output",
    ),
    (r"gate_proj", "ffn_gate", "ffn_gate"),
    (r"intermediate\.dense|ffn\.lin1|fc1|up_proj", "ffn_in", "ffn_in"),
    (r"output\.dense|ffn\.lin2|fc2|down_proj", "ffn_out", "ffn_out"),
    (
        r"attention\.output\.LayerNorm|sa_layer_norm|self_attn_layer_norm|input_layernorm|attention\.LayerNorm",
        "norm",
        "attention_norm",
    ),
    (r"output\.LayerNorm|output_layer_norm|final_layer_norm|post_attention_layernorm", "norm", "ffn_norm"),
)

# Names of modules outside the blocks.
OUTSIDE: tuple[Rule, ...] = (
    (r"word_embeddings?|tok_embeddings|embed_tokens|wte|shared", "embedding", "embedding.word"),
    (r"position_embeddings|embed_positions|wpe", "embedding", "embedding.position"),
    (r"token_type_embeddings", "embedding", "embedding.token_type"),
    (r"embeddings_project|embedding_hidden_mapping_in", "embedding", "embedding.projection"),  # ELECTRA, ALBERT
    (r"embeddings\.(?:LayerNorm|norm)|layernorm_embedding", "norm", "embedding.norm"),
    (r"pooler(?:\.dense)?|pre_classifier", "pooler", "pooler"),
    (r"(?:classifier|cls|score|qa_outputs|lm_head|classification_head)((?:\.\w+)*)", "head", "head{0}"),
    (r"norm|ln_f|final_layer_norm|layer_norm", "norm", "norm"),
)


def find_role(module: str, rules: tuple[Rule, ...]) -> tuple[str, str] | None:
    """Return role and word of the first rule that fits the end of a module's dotted name.

    Args:
        module: dotted name, relative to the block for ``IN_BLOCK``.
        rules: the table to read.

    Returns:
        Role and word, or None where no rule claims the name.

    Example:
        >>> find_role("attention.self.query", IN_BLOCK)
        ('query', 'query')
        >>> find_role("classifier.out_proj", OUTSIDE)
        ('head', 'head.out_proj')
    """
    for pattern, role, word in rules:
        found = re.search(rf"(?:^|\.)(?:{pattern})$", module)
        if found:
            return role, word.format(*(group or "" for group in found.groups()))
    return None
