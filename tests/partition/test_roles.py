from __future__ import annotations

import re

import pytest

from evenkeel.partition import ROLES
from evenkeel.partition._roles import IN_BLOCK, OUTSIDE, Rule, find_role


@pytest.mark.parametrize("rules", [IN_BLOCK, OUTSIDE])
def test_every_rule_is_an_expression_of_a_known_role(rules: tuple[Rule, ...]) -> None:
    for pattern, role, _ in rules:
        re.compile(pattern)
        assert role in ROLES


@pytest.mark.parametrize(
    ("module", "role"),
    [
        ("attention.attn.q", "query"),  # MPNet
        ("attention.attn.o", "attention_output"),
        ("self_attn.out_proj", "attention_output"),  # BART, OPT
        ("attn.out_proj", "attention_output"),
        ("encoder_attn.out_proj", "attention_output"),
        ("encoder_attn_layer_norm", "norm"),
        ("fc1", "ffn_in"),
        ("output.dense", "ffn_out"),
        ("attention.output.dense", "attention_output"),  # ends like the row before
        ("attention.output.LayerNorm", "norm"),
        ("multi_key", None),  # only whole names count
        ("keyed", None),
    ],
)
def test_a_module_in_a_block_is_known_by_the_end_of_its_name(module: str, role: str | None) -> None:
    found = find_role(module, IN_BLOCK)
    assert (found and found[0]) == role


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("transformer.wte", ("embedding", "embedding.word")),
        ("albert.encoder.embedding_hidden_mapping_in", ("embedding", "embedding.projection")),
        ("albert.pooler", ("pooler", "pooler")),
        ("cls.predictions.transform", ("head", "head.predictions.transform")),
        ("lm_head", ("head", "head")),
        ("backbone.stem", None),
    ],
)
def test_a_module_outside_the_blocks(module: str, expected: tuple[str, str] | None) -> None:
    assert find_role(module, OUTSIDE) == expected
