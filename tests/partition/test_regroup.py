from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from tests import _models
from transformers import (
    BloomConfig,
    BloomForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
)

from evenkeel import Components, components
from evenkeel.errors import ComponentError
from evenkeel.partition import By, regroup

BERT = _models.bert(2)
FINE = components(BERT)
GROUPINGS: list[By] = ["tensor", "module", "role", "layer", "global", lambda part: part.kind]


def tensors(parts: Components) -> set[int]:
    return {id(tensor) for part in parts for tensor in part.parameters}


@pytest.mark.parametrize("by", GROUPINGS)
def test_a_regrouping_holds_every_tensor_once(by: By) -> None:
    coarse = components(BERT, by)
    assert sum(len(part.parameters) for part in coarse) == len(FINE)
    assert tensors(coarse) == tensors(FINE)
    assert sum(part.size for part in coarse) == sum(parameter.numel() for parameter in BERT.parameters())
    assert len({part.name for part in coarse}) == len(coarse)
    assert regroup(FINE, by) == coarse


def test_tensor_is_the_fine_partition_itself() -> None:
    assert regroup(FINE, "tensor") is FINE


def test_modules_keep_weight_and_bias_together() -> None:
    query = next(part for part in components(BERT, "module") if part.name.endswith("layer.1.attention.self.query"))
    assert (query.layer, query.role, query.kind) == (1, "query", None)
    assert query.shape == (query.size,) == (_models.HIDDEN * (_models.HIDDEN + 1),)


def test_roles_merge_over_layers() -> None:
    by_role = {part.name: part for part in components(BERT, "role")}
    assert set(by_role) == {part.role for part in FINE}
    assert by_role["query"].layer is None
    assert by_role["query"].role == "query"
    assert len(by_role["query"].parameters) == 4  # weight and bias in two layers


def test_layers_and_what_is_outside_of_them() -> None:
    merged = components(BERT, "layer")
    assert [part.name for part in merged] == ["outside", "layer.0", "layer.1"]
    assert [part.layer for part in merged] == [None, 0, 1]
    assert all(part.role is None for part in merged)


def test_global_is_one_component() -> None:
    (everything,) = components(BERT, "global")
    assert everything.name == "global"
    assert (everything.role, everything.layer, everything.kind) == (None, None, None)


def test_groups_stand_in_the_order_of_their_first_members() -> None:
    parts = components(BERT, lambda part: (part.layer is not None, part.kind))
    assert [part.name for part in parts] == [
        "(False, 'weight')",
        "(False, 'bias')",
        "(True, 'weight')",
        "(True, 'bias')",
    ]


def test_aliases_are_kept() -> None:
    (everything,) = components(_models.masked_bert(), "global")
    assert "cls.predictions.decoder.weight" in everything.aliases


def raising(part: Any) -> Any:
    return part.no_such_thing


def unhashable(part: Any) -> Any:
    return [part.role]


def alike(part: Any) -> Any:
    return 1 if part.kind == "bias" else "1"


@pytest.mark.parametrize(
    ("by", "said"),
    [
        ("layers", "did you mean 'layer'"),
        (raising, "failed on component 'bert.embeddings.word_embeddings.weight' .*no_such_thing"),
        (unhashable, "unhashable"),
        (alike, "different values that all read '1'"),
    ],
)
def test_a_grouping_that_cannot_be_is_refused(by: Any, said: str) -> None:
    with pytest.raises(ComponentError, match=said):
        components(BERT, by)


def test_a_merged_component_owns_the_tensors_not_copies() -> None:
    (everything,) = components(BERT, "global")
    for mine, parameter in zip(everything.parameters, BERT.parameters(), strict=True):
        assert mine is parameter
        assert isinstance(mine, torch.nn.Parameter)


# --- models with cut tensors


def bloom() -> Any:
    return BloomForSequenceClassification(
        BloomConfig(vocab_size=16, hidden_size=8, n_layer=2, n_head=2, pad_token_id=0)
    )


def gpt2() -> Any:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=8, n_positions=8, n_embd=6, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    )


def gpt_oss() -> Any:
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    return GptOssForCausalLM(
        GptOssConfig(
            vocab_size=16, hidden_size=8, intermediate_size=6, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=4, num_local_experts=2, num_experts_per_tok=1, rope_parameters=rope,
            pad_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


CUT = pytest.mark.parametrize("make", [bloom, gpt2, gpt_oss])


def covered(parts: Components) -> Counter[str]:
    """How many entries of each parameter the components own, counted as often as they own them."""
    found: Counter[str] = Counter()
    for part in parts:
        for piece in part.pieces:
            (view,) = piece.of(piece.tensor())
            found[piece.name] += view.numel()
    return found


@CUT
@pytest.mark.parametrize("by", GROUPINGS)
def test_a_regrouping_of_cut_tensors_holds_every_entry_once(make: Any, by: By) -> None:
    model = make()
    coarse = components(model, by)
    assert covered(coarse) == {name: parameter.numel() for name, parameter in model.named_parameters()}
    for part in coarse:
        assert part.size == sum(view.numel() for piece in part.pieces for view in piece.of(piece.tensor()))
        assert part.shape == (part.size,) or by == "tensor"


@CUT
@pytest.mark.parametrize("by", ["module", "layer", "global"])
def test_pieces_that_make_a_whole_tensor_are_joined(make: Any, by: By) -> None:
    model = make()
    assert any(part.cut for part in components(model))
    coarse = components(model, by)
    assert not any(part.cut for part in coarse)
    owned = [tensor for part in coarse for tensor in part.parameters]
    assert len(owned) == len({id(tensor) for tensor in owned}) == len(list(model.parameters()))
    assert all(piece.spans == () for part in coarse for piece in part.pieces)


def test_roles_keep_their_pieces_of_fused_tensors() -> None:
    by_role = {part.name: part for part in components(bloom(), "role")}
    for role in ("query", "key", "value"):
        part = by_role[role]
        assert (part.role, part.layer, part.kind) == (role, None, None)
        assert len(part.pieces) == 4  # weight and bias in two layers
        assert part.cut == "num_heads x (query | key | value)"
        assert part.size == 2 * (8 * 8 + 8)


def test_a_function_may_join_some_parts_of_a_tensor_and_leave_others() -> None:
    model = gpt2()
    parts = components(model, lambda part: (part.layer, part.kind, part.role == "value"))
    for part in parts:
        names = [piece.name for piece in part.pieces if "c_attn" in piece.name]
        if part.role == "value":
            assert len(names) == len(part.pieces) == 1
        elif part.layer is not None:
            assert len(names) == 2  # queries and keys: a part of the tensor, so that two pieces stay
    assert covered(parts) == {name: parameter.numel() for name, parameter in model.named_parameters()}


def test_a_grouping_of_a_module_keeps_queries_keys_and_values_together() -> None:
    fused = next(part for part in components(gpt2(), "module") if part.name == "transformer.h.0.attn.c_attn")
    assert (fused.role, fused.layer, fused.kind, fused.size) == (None, 0, None, 6 * 18 + 18)


def test_shared_and_stack_are_kept_where_all_members_have_them() -> None:
    coarse = components(bloom(), "layer")
    assert {(part.stack, part.shared) for part in coarse} == {(None, False)}
