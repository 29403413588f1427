from __future__ import annotations

import dataclasses

import pytest
import torch
from tests import _models
from torch import nn

from evenkeel import Component, Components, components
from evenkeel.errors import ComponentError
from evenkeel.partition import matches


def test_a_slice_of_components_is_components_and_an_item_is_one() -> None:
    parts = components(_models.bert())
    assert isinstance(parts[2:5], Components)
    assert [part.name for part in parts[2:5]] == [part.name for part in parts][2:5]
    assert isinstance(parts[-1], Component)
    assert parts[-1].name == "classifier.bias"
    assert len(parts[:0]) == 0
    with pytest.raises(IndexError):
        parts[len(parts)]


def test_components_are_equal_where_their_parts_are_and_never_to_a_list() -> None:
    model = _models.bert()
    parts = components(model)
    assert parts == components(model)
    assert hash(parts) == hash(components(model))
    assert parts != parts[1:]
    assert parts != list(parts)


def test_components_say_how_much_they_hold() -> None:
    assert repr(components(nn.Linear(2000, 1))) == "Components(2 components, 2,001 entries)"


def test_a_tensor_in_two_components_is_refused() -> None:
    part = components(nn.Linear(2, 1))[0]
    with pytest.raises(ComponentError, match="'weight' and 'again' share entries of a tensor"):
        Components([part, dataclasses.replace(part, name="again")])


def test_a_component_cannot_be_changed() -> None:
    part = components(nn.Linear(2, 1))[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        part.layer = 3  # type: ignore[misc]


def test_select_keeps_what_fits_all_that_is_given_in_order() -> None:
    parts = components(_models.bert(3))
    both = parts.select("*.bias", role="query", layer=1)
    assert [part.path for part in both] == ["layer.1.query.bias"]
    assert [part.path for part in parts.select("layer.?.key.weight")] == [f"layer.{n}.key.weight" for n in range(3)]
    assert len(parts.select("nothing")) == 0
    assert parts.select() == parts


def test_layer_zero_is_a_layer() -> None:
    parts = components(_models.bert(3))
    assert {part.layer for part in parts.select(layer=0)} == {0}


def test_a_role_matches_whole_and_a_path_by_pattern() -> None:
    by_path = {part.path: part for part in components(_models.bert())}
    query, head = by_path["layer.0.query.weight"], by_path["head.weight"]
    assert matches(query, "query")
    assert matches(query, "layer.[01].*")
    assert not matches(query, "quer")
    assert not matches(query, "QUERY")
    assert not matches(query, "bert.encoder*")  # patterns are for paths, not for the model's own names
    assert matches(head, "head")
    assert matches(head, "head*")


def test_depth_counts_blocks() -> None:
    assert components(_models.bert(3)).depth == 3
    assert components(nn.Linear(1, 1)).depth == 0


def test_unclaimed_is_what_no_rule_knows() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gadget = nn.Linear(2, 2)
            self.classifier = nn.Linear(2, 2)
            self.temperature = nn.Parameter(torch.ones(()))

    unclaimed = components(Odd()).unclaimed
    assert [part.path for part in unclaimed] == ["temperature", "gadget.weight", "gadget.bias"]
    assert unclaimed[0].size == 1
    assert unclaimed[0].shape == ()
