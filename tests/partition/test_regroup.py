from __future__ import annotations

from typing import Any

import pytest
import torch
from tests import _models

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
