"""The vocabulary of roles: what a component does in a model."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["ROLES", "joint"]

ROLES: dict[str, str] = {
    "embedding": "a table of vectors for words, positions, segments or the like, and what maps it to the model's width",
    "relative_position": "what an attention adds for distances or segments: tables, projections, biases",
    "query": "makes queries",
    "key": "makes keys",
    "value": "makes values",
    "key_value": "makes what serves as keys and as values at once",
    "query_key": "makes what serves as queries and, normalised, as keys at once",
    "qkv": "makes queries, keys and values at once: a fused tensor that no rule cuts, or what they have in common",
    "query_a": "low-rank attention: to the query's compressed form",
    "query_b": "low-rank attention: from the query's compressed form to the queries",
    "key_value_a": "low-rank attention: to the compressed form that keys and values have in common",
    "key_rope": "low-rank attention: the part of the keys that carries the rotary position",
    "key_b": "low-rank attention: from the compressed form to the keys",
    "value_b": "low-rank attention: from the compressed form to the values",
    "attention_output": "from the heads back to the model's width",
    "attention_gate": "what multiplies the output of an attention, or closes it",
    "attention_sink": "the learned logit that takes attention from all positions",
    "attention_scale": "a learned scale or temperature of queries, keys or attention logits",
    "head_mixing": "mixes the logits or the weights of the heads",
    "indexer": "sparse attention: picks the positions that are attended to",
    "ffn_in": "feed-forward: from the model's width to the inner one",
    "ffn_gate": "feed-forward: makes what goes through the activation and multiplies the inner layer",
    "ffn_out": "feed-forward: from the inner width back to the model's",
    "expert_in": "ffn_in of an expert",
    "expert_gate": "ffn_gate of an expert",
    "expert_out": "ffn_out of an expert",
    "shared_expert_in": "ffn_in of an expert that every token uses",
    "shared_expert_gate": "ffn_gate of an expert that every token uses",
    "shared_expert_out": "ffn_out of an expert that every token uses",
    "router": "chooses and weighs the experts of a token",
    "conv": "a convolution along the text",
    "ssm_in": "state-space mixer: from the model's width to what enters the state",
    "ssm_gate": "state-space or linear mixer: multiplies the output of the mixer",
    "ssm_b": "state-space mixer: how the input enters the state",
    "ssm_c": "state-space mixer: how the state is read",
    "ssm_dt": "state-space mixer: the length of a time step",
    "ssm_a": "state-space mixer: how the state decays",
    "ssm_d": "state-space mixer: what passes the state by",
    "ssm_out": "state-space mixer: back to the model's width",
    "decay": "linear or recurrent mixer: how fast what was stored is forgotten",
    "write_gate": "linear or recurrent mixer: how much of the input is stored",
    "time_mix": "how much of the previous position enters a projection",
    "mixing": "mixes positions without attention",
    "residual": "scales or mixes what goes around or into a block: layer scales, hyper-connections, several streams",
    "bottleneck": "projection from or to a narrower width inside a block",
    "adapter": "a small inserted layer of the model's own, such as one language's or one position in the text's",
    "activation": "a parameter of an activation function",
    "per_layer_input": "brings the token's own embedding for this layer in",
    "norm": "scale and shift of a normalisation",
    "pooler": "from the hidden states to one vector of the text",
    "projector": "between the towers of a model of several kinds of input",
    "head": "the task's output layers, and language-model heads",
    "other": "what no rule knows",
}

_JOINT = {
    frozenset({"query", "key", "value"}): "qkv",
    frozenset({"ffn_gate", "ffn_in"}): "ffn_in",
    frozenset({"expert_gate", "expert_in"}): "expert_in",
}


def joint(roles: Iterable[str]) -> str:
    """Return the role of what serves several components at once, such as LoRA's A beside a fused projection.

    Args:
        roles: their roles, at least one.

    Returns:
        The word for all of them, or the first one where there is none.

    Example:
        >>> joint(["query", "key", "value"]), joint(["ffn_out"])
        ('qkv', 'ffn_out')
    """
    names = tuple(roles)
    return _JOINT.get(frozenset(names), names[0])
