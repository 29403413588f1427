"""The partition of every architecture that transformers can classify texts or go on writing with."""

from __future__ import annotations

import functools
from collections import Counter

import pytest
import torch
from tests.partition import _zoo
from torch import nn

from evenkeel import components
from evenkeel.errors import ComponentError
from evenkeel.partition import ROLES, Component, Components
from evenkeel.partition._span import views

MAKERS = {
    "queries": {"query", "query_a", "query_b", "query_key"},
    "keys": {"key", "key_b", "key_value_a", "key_rope", "key_value", "query_key"},
    "values": {"value", "value_b", "key_value_a", "key_value"},
}


def problems(model: nn.Module) -> list[str]:
    """Say what is wrong with the partition of a model."""
    try:
        parts = components(model)
    except ComponentError as error:
        return [str(error)]
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    found = [f"{parts.size} of {trainable} entries"] if parts.size != trainable else []
    found += _of_layers(parts)
    found += [f"{part.path} is no role: {part.role}" for part in parts if part.role not in ROLES]
    found += [f"unclaimed: {part.name}" for part in parts if part.role == "other" and part.layer is not None]
    found += [f"not cut: {part.name}" for part in parts if part.role == "qkv" and part.layer is not None]
    paths = Counter(part.path for part in parts)
    found += [f"path not unique: {path}" for path, count in paths.items() if count > 1 or "#" in path]
    return found


def _of_layers(parts: Components) -> list[str]:
    layers: dict[str | None, dict[int, list[Component]]] = {}
    for part in parts:
        if part.layer is not None:
            layers.setdefault(part.stack, {}).setdefault(part.layer, []).append(part)
    found = [] if layers else ["no blocks"]
    for stack, members in layers.items():
        if sorted(members) != list(range(len(members))):
            found.append(f"layers of {stack}: {sorted(members)}")
        for layer, own in members.items():
            roles = {part.role for part in own}
            told = {what for what, makers in MAKERS.items() if roles & makers}
            if told and len(told) < len(MAKERS):
                found.append(f"layer {layer} of {stack} makes {sorted(told)} alone")
    return found


@functools.cache
def coverage() -> tuple[dict[tuple[str, str], list[str]], dict[tuple[str, str], str], set[str | None]]:
    """Return the problems of all types that can be built, why others cannot, and all roles that were seen."""
    found: dict[tuple[str, str], list[str]] = {}
    unbuildable: dict[tuple[str, str], str] = {}
    roles: set[str | None] = set()
    for kind, model_type in _zoo.TYPES:
        try:
            model = _zoo.build(kind, model_type)
        except _zoo.UnbuildableError as error:
            unbuildable[kind, model_type] = str(error)
            continue
        found[kind, model_type] = problems(model)
        if not found[kind, model_type]:
            roles |= {part.role for part in components(model)}
    return found, unbuildable, roles


FAST = [*_zoo.FAST, "torch"]
EXACT = ["gpt2", "bloom", "falcon-40b", "gpt_bigcode-multi-query", "codegen", "phi3", "gpt_oss", "llama4_text", "dbrx"]
EXACT += ["deepseek_v3", "qwen3_next", "mamba2", "jetmoe", "torch"]


@pytest.mark.parametrize("name", FAST)
def test_a_family_of_the_fast_subset_is_known_whole(name: str) -> None:
    assert problems(_zoo.fast(name, meta=True)) == []


@pytest.mark.parametrize("name", EXACT)
def test_every_entry_is_in_exactly_one_component(name: str) -> None:
    model = _zoo.fast(name)
    times = {id(parameter): torch.zeros(parameter.shape) for parameter in model.parameters()}
    for part in components(model):
        size = 0
        for piece in part.pieces:
            entries = views(times[id(piece.tensor())], piece.spans)
            entries.add_(1)
            size += entries.numel()
        assert size == part.size, part.path
    assert all(bool((count == 1).all()) for count in times.values())


def test_the_fast_subset_holds_thirty_families() -> None:
    assert len({type(_zoo.fast(name, meta=True)).__module__ for name in FAST}) >= 30


@pytest.mark.parametrize("roles", [{"GPT2Attention": {"c_attn": "qkv"}}, {"GPT2MLP": {"c_fc": "other"}}])
def test_what_is_not_cut_or_not_claimed_is_a_problem(
    roles: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check itself can fail."""
    monkeypatch.setitem(globals(), "components", functools.partial(components, roles=roles))
    assert problems(_zoo.fast("gpt2", meta=True))
