from __future__ import annotations

import copy
import dataclasses
import io
import pickle
from typing import Any

import pytest
import torch
from rich.console import Console
from tests import _models
from torch import nn
from transformers import BloomConfig, BloomForSequenceClassification, LlamaConfig, LlamaForCausalLM

from evenkeel import Components, components
from evenkeel.errors import ComponentError
from evenkeel.partition import Span, regroup


def bloom(hidden: int = 8, layers: int = 2) -> BloomForSequenceClassification:
    """Its fused projections hold the heads' queries, keys and values in turn."""
    return BloomForSequenceClassification(
        BloomConfig(vocab_size=16, hidden_size=hidden, n_layer=layers, n_head=2, pad_token_id=0)
    )


class Fused(nn.Module):
    def __init__(self, size: int = 6) -> None:
        super().__init__()
        self.w = nn.Linear(2, size)


def fused(size: int = 6) -> Components:
    return components(Fused(size), roles={"Fused": {"w": "query | key"}})


# --- pickling, copying, binding


@pytest.mark.parametrize("by", ["tensor", "layer", "role", "global"])
def test_pickled_components_are_the_same_without_their_tensors(by: Any) -> None:
    parts = components(bloom(), by)
    data = pickle.dumps(parts)
    again = pickle.loads(data)  # noqa: S301
    assert again == parts
    assert hash(again) == hash(parts)
    assert repr(again) == repr(parts)
    assert len(data) < 100_000
    for call in (lambda: again[0].parameters, lambda: again[0].gradients(), lambda: again[0].pieces[0].tensor()):
        with pytest.raises(ComponentError, match=r"is bound to no model.*call Components\.bind\(model\)"):
            call()


def test_what_was_pickled_can_be_asked_and_bound_again() -> None:
    model, parts = bloom(), components(bloom())
    again: Components = pickle.loads(pickle.dumps(parts))  # noqa: S301
    assert again.select(role="query", layer=1) == parts.select(role="query", layer=1)
    assert again[2:4] == parts[2:4]
    assert (again.size, again.depth) == (parts.size, parts.depth)
    bound = again.bind(model)
    for mine, own in zip(bound, components(model), strict=True):
        assert mine == own
        assert all(a is b for a, b in zip(mine.parameters, own.parameters, strict=True))


def test_groups_of_what_was_pickled_are_refused_until_it_is_bound() -> None:
    model = bloom()
    again: Components = pickle.loads(pickle.dumps(components(model)))  # noqa: S301
    with pytest.raises(ComponentError, match="bound to no model"):
        regroup(again, "layer")
    assert regroup(again.bind(model), "layer") == components(model, "layer")


def test_binding_leaves_the_components_as_they_were() -> None:
    first, second = bloom(), bloom()
    parts = components(first)
    bound = parts.bind(second)
    assert parts[0].parameters[0] is next(first.parameters())
    assert bound[0].parameters[0] is next(second.parameters())
    assert bound == parts


def test_components_bind_to_a_wrapped_model_and_to_one_on_meta() -> None:
    parts = components(_models.bert())
    wrapped = nn.ModuleDict({"module": _models.bert()})
    assert parts.bind(wrapped)[0].parameters[0] is next(wrapped.parameters())
    with torch.device("meta"):
        meta = _models.bert()
    assert all(part.parameters[0].is_meta for part in parts.bind(meta))


def test_frozen_parameters_can_be_bound_too() -> None:
    model = bloom()
    parts = components(model)
    model.requires_grad_(False)
    assert parts.bind(model) == parts


@pytest.mark.parametrize("grown", [False, True])
@pytest.mark.parametrize("by", ["tensor", "layer"])
def test_a_model_of_another_size_is_refused(by: Any, grown: bool) -> None:
    """A larger one too: the same spans would own a part of what they owned, and of another head."""
    small, large = bloom(8), bloom(16)
    parts, other = components(large if not grown else small, by), small if not grown else large
    with pytest.raises(ComponentError, match="of a model of another size"):
        parts.bind(other)


@pytest.mark.parametrize("size", [4, 8, 12])
def test_cuts_of_a_tensor_of_another_size_are_refused(size: int) -> None:
    with pytest.raises(ComponentError, match=r"(?s)'w\.weight.* another size"):
        fused(6).select(kind="weight").bind(Fused(size))


def test_a_model_without_the_parameter_is_refused() -> None:
    parts = components(bloom(layers=2))
    with pytest.raises(ComponentError, match=r"has no parameter 'transformer\.h\.1\..*of another model"):
        parts.bind(bloom(layers=1))
    assert components(bloom(layers=1)).bind(bloom(layers=2)).depth == 1


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy])
def test_a_copy_is_equal_and_its_tensors_are_never_copied(make: Any) -> None:
    parts = components(bloom())
    again = make(parts)
    assert again == parts
    for mine, own in zip(again.bind(bloom()), parts, strict=True):
        assert mine == own
    for part, own in zip(again, parts, strict=True):
        for piece, owned in zip(part.pieces, own.pieces, strict=True):
            assert piece.parameter is None or piece.parameter is owned.parameter


# --- asking


def test_select_takes_all_arguments_together() -> None:
    parts = components(bloom())
    for given in ({"role": "query"}, {"layer": 1}, {"kind": "bias"}, {"role": "key", "layer": 0, "kind": "weight"}):
        expected = [part for part in parts if all(getattr(part, name) == value for name, value in given.items())]
        assert expected
        assert list(parts.select(**given)) == expected  # type: ignore[arg-type]
    assert [part.path for part in parts.select("layer.*.query.*", kind="bias", layer=1)] == ["layer.1.query.bias"]
    assert [part.role for part in parts.select("query", kind="bias")] == ["query"] * 2
    assert parts.select(stack="encoder") == parts[:0]


def test_select_by_stack() -> None:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("encoder", "decoder"):
                tower = nn.Module()
                tower.layers = nn.ModuleList(nn.Sequential(nn.Linear(1, 1)) for _ in range(2))
                self.add_module(name, tower)

    parts = components(Towers())
    assert {part.stack for part in parts} == {"encoder", "decoder"}
    chosen = parts.select(stack="decoder", layer=0, kind="weight")
    assert [part.name for part in chosen] == ["decoder.layers.0.0.weight"]


def test_slices_and_equality_know_cuts() -> None:
    parts = fused()
    assert [part.name for part in parts[::-1]] == [part.name for part in parts][::-1]
    assert parts[1:3] != parts[0:2]
    assert hash(parts[:]) == hash(parts)
    assert len({parts, parts[:], fused(), fused(8)}) == 2
    moved = dataclasses.replace(parts[0].pieces[0], spans=(Span(dim=0, start=1, length=3, stride=6),))
    assert dataclasses.replace(parts[0], pieces=(moved,)) != parts[0]
    assert parts[0] in parts
    assert parts.index(parts[2]) == 2


# --- looking


def test_a_table_shows_what_each_component_is() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    parts = components(bloom())
    console.print(parts)
    text = console.export_text()
    for part in parts:
        (row,) = (line for line in text.splitlines() if f" {part.path} " in line)
        shown = [cell.strip() for cell in row.split("│")[1:-1]]
        shape = " x ".join(map(str, part.shape))
        assert shown == [part.path, part.role or "", shape, f"{part.size:,}", part.cut]
    assert repr(parts) in text


def test_a_merged_component_has_a_row_too() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(components(bloom(), "layer"))
    text = console.export_text()
    assert "layer.1" in text
    assert "None" not in text


# --- entries in two components


def test_a_cut_and_the_whole_of_one_tensor_are_refused() -> None:
    model = Fused()
    whole, cut = components(model), components(model, roles={"Fused": {"w": "query | key"}})
    for first, second in ((whole[0], cut[1]), (cut[1], whole[0])):
        with pytest.raises(ComponentError, match=r"share entries of a tensor, which would be clipped twice") as caught:
            Components([first, second])
        assert f"'{first.name}' and '{second.name}'" in str(caught.value)


def test_two_different_cuts_of_one_tensor_are_refused() -> None:
    model = Fused()
    halves = components(model, roles={"Fused": {"w": "query | key"}})
    turns = components(model, roles={"Fused": {"w": "* x (query | key)"}})
    with pytest.raises(ComponentError, match="share entries"):
        Components([halves[0], turns[1]])


def test_the_same_component_twice_is_refused() -> None:
    for parts in (fused(), components(Fused(), "global")):
        with pytest.raises(ComponentError, match=f"'{parts[0].name.split('[')[0]}.*share entries"):
            Components([parts[0], parts[0]])


def test_a_group_and_a_member_of_it_are_refused() -> None:
    model = bloom()
    fine, coarse = components(model), components(model, "role")
    query = fine.select(role="query")[0]
    with pytest.raises(ComponentError, match="share entries"):
        Components([*coarse, query])


def test_different_parts_of_one_cut_go_together() -> None:
    parts = fused()
    assert len(Components([parts[1], parts[0]])) == 2


# --- large models


def test_a_model_of_seventy_billion_parameters_needs_no_memory() -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=128_256, hidden_size=8192, intermediate_size=28_672, num_hidden_layers=80,
                num_attention_heads=64, num_key_value_heads=8, tie_word_embeddings=False,
            )
        )  # fmt: skip
    parts = components(model)
    assert parts.size == 70_553_706_496  # as published for Llama 3 70B
    assert parts.depth == 80
    assert len(parts) == 80 * 9 + 3
    assert not parts.unclaimed
    assert {part.shape for part in parts.select(role="key")} == {(1024, 8192)}
    assert len(components(model, "layer")) == 81


def test_components_of_one_name_are_refused() -> None:
    first, second = components(nn.Linear(2, 2)), components(nn.Linear(2, 2))
    with pytest.raises(ComponentError, match="two components are called 'weight'.* each model's components"):
        Components([*first, *second])
