from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests import _models
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from evenkeel import Components, components
from evenkeel.errors import ComponentError


def nest(**leaves: nn.Module) -> nn.Module:
    """A model with modules of these names; ``__`` is the dot, and digits make lists."""
    model = nn.Module()
    for name, leaf in leaves.items():
        owner, bits = model, name.split("__")
        for bit, after in pairwise(bits):
            if bit not in owner._modules:
                owner.add_module(bit, nn.ModuleList() if after.isdigit() else nn.Module())
            owner = owner.get_submodule(bit)
        owner.add_module(bits[-1], leaf)
    return model


def described(model: nn.Module, **options: Any) -> dict[str, tuple[str, str | None]]:
    return {part.name: (part.path, part.role) for part in components(model, **options)}


# --- common names


@pytest.mark.parametrize(
    ("module", "role", "word"),
    [
        ("attention.attn.q", "query", "query"),  # MPNet
        ("attention.attn.o", "attention_output", "attention_output"),
        ("self_attn.out_proj", "attention_output", "attention_output"),  # BART, OPT
        ("attn.out_proj", "attention_output", "attention_output"),
        ("encoder_attn.out_proj", "attention_output", "cross_attention_output"),
        ("encoder_attn_layer_norm", "norm", "cross_attention_norm"),
        ("fc1", "ffn_in", "ffn_in"),
        ("output.dense", "ffn_out", "ffn_out"),
        ("attention.output.dense", "attention_output", "attention_output"),  # ends like the row before
        ("attention.output.LayerNorm", "norm", "attention_norm"),
        ("multi_key", "other", "multi_key"),  # only whole names count
        ("keyed", "other", "keyed"),
        ("classifier", "other", "classifier"),  # a head is none inside a block
    ],
)
def test_a_module_in_a_block_is_known_by_the_end_of_its_name(module: str, role: str, word: str) -> None:
    names = ["model.layers.0.gadget", f"model.layers.1.{module}"]
    found = described(nest(**{name.replace(".", "__"): nn.Linear(2, 2) for name in names}))
    assert found[f"model.layers.1.{module}.weight"] == (f"layer.1.{word}.weight", role)
    assert found[f"model.layers.1.{module}.bias"] == (f"layer.1.{word}.bias", role)


@pytest.mark.parametrize(
    ("module", "role", "word"),
    [
        ("transformer.wte", "embedding", "embedding.word"),
        ("albert.encoder.embedding_hidden_mapping_in", "embedding", "embedding.projection"),
        ("albert.pooler", "pooler", "pooler"),
        ("cls.predictions.transform.dense", "head", "head.dense"),
        ("lm_head", "head", "head"),
        ("backbone.stem", "other", "backbone.stem"),
        ("q_proj", "other", "q_proj"),  # a query is none outside the blocks
    ],
)
def test_a_module_outside_the_blocks(module: str, role: str, word: str) -> None:
    path = word if word.startswith("embedding.") else f"{word}.weight"
    assert described(nest(**{module.replace(".", "__"): nn.Linear(2, 2, bias=False)})) == {
        f"{module}.weight": (path, role)
    }


# --- structure, where no rule knows the name


class OddNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))


@pytest.mark.parametrize(
    ("module", "inside", "outside"),
    [
        (nn.LayerNorm(2, bias=False), ("thing.weight", "norm"), ("thing.weight", "norm")),
        (OddNorm(), ("thing.weight", "norm"), ("thing.weight", "norm")),
        (nn.Embedding(2, 2), ("some.thing.weight", "other"), ("embedding.thing", "embedding")),
        (nn.Conv1d(2, 2, 1, bias=False), ("some.thing.weight", "conv"), ("some.thing.weight", "conv")),
        (nn.Linear(2, 2, bias=False), ("some.thing.weight", "other"), ("some.thing.weight", "other")),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_structure_says_what_no_name_does(module: nn.Module, inside: tuple[str, str], outside: tuple[str, str]) -> None:
    assert described(nest(some__thing=module)) == {"some.thing.weight": outside}
    block = described(nest(layers__0__some__thing=module))
    assert block == {"layers.0.some.thing.weight": (f"layer.0.{inside[0]}", inside[1])}


# --- who goes before whom


class Inner(nn.Module):
    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.config = config
        self.q_proj = nn.Linear(4, 12, bias=False)
        self.q_norm = nn.LayerNorm(4, bias=False)


class Outer(nn.Module):
    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.inner = Inner(config)


class Derived(Outer):
    """Is what its base is, as far as rules go."""


def query(roles: Any, block: nn.Module | None = None) -> set[str | None]:
    """The role of what is called ``q_proj``."""
    parts = components(nest(layers__0=block or Outer(), layers__1=Outer()), roles=roles)
    return {part.role for part in parts.select(layer=0) if "q_proj" in part.name}


@pytest.mark.parametrize(
    "roles",
    [
        {"block": {"q_proj": "router"}},
        {"block": {"inner.q_proj": "router"}},
        {"block": {"inner.q_proj.weight": "router"}},
        {"Inner": {"q_proj": "router"}},
        {"Inner": {"q_proj.weight": "router"}},
        {"Outer": {"inner.q_proj": "router"}},
        {"Inner": {"q_proj": ["conv if no_such", "router if q_norm", "adapter"]}},
        {"Inner": {"q_proj": ["conv if no_such", "router"]}},
        {"Outer": {"inner.q_proj": ["conv if no_such"]}, "Inner": {"q_proj": "router"}},
        {"Outer": {"inner.q_proj": "conv if no_such"}, "block": {"q_proj": "router"}},
    ],
    ids=str,
)
def test_any_place_may_speak_and_the_first_rule_that_holds_is_used(roles: Any) -> None:
    assert query(None) == {"query"}
    assert query(roles) == {"router"}


@pytest.mark.parametrize(
    "roles",
    [
        {
            "Outer": {"inner.q_proj": "router"},
            "Inner": {"q_proj": "conv", "q_norm": "conv"},
        },  # the outermost knows most
        {"Inner": {"q_proj": "router"}, "block": {"q_proj": "conv", "q_norm": "conv"}},  # a class before a place
        {"Inner": {"q_proj.weight": "router", "q_proj": "conv"}},  # a parameter before its module
        {"block": {"inner.q_proj": "router", "q_proj": "conv"}},  # a longer name before a shorter one
    ],
    ids=str,
)
def test_who_knows_more_goes_first(roles: Any) -> None:
    class More(nn.Module):  # so that the second rule of each case fits something too
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()
            self.inner.q_proj.bias = nn.Parameter(torch.zeros(12))
            self.q_proj = nn.Linear(4, 4)
            self.deep = Inner()

    parts = components(nest(layers__0=Outer(), layers__1=More()), roles=roles)
    (mine,) = (part for part in parts if part.name == "layers.0.inner.q_proj.weight")
    assert mine.role == "router"
    assert "conv" in {part.role for part in parts}


def test_a_derived_class_follows_the_rules_of_its_base_unless_it_has_its_own() -> None:
    assert query({"Outer": {"inner.q_proj": "router"}}, Derived()) == {"router"}
    own = {"Derived": {"inner.q_proj": "conv"}, "Outer": {"inner.q_proj": "router"}}
    assert query(own, Derived()) == {"conv"}


def test_a_family_is_told_by_its_file_and_not_by_a_class_of_the_same_name() -> None:
    class GPT2Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c_attn = nn.Linear(6, 6)

    parts = components(nest(h__0__attn=GPT2Attention(), h__1__attn=GPT2Attention()))
    assert {(part.role, part.cut) for part in parts} == {("qkv", "")}


# --- where numbers come from


def places(values: dict[str, Any]) -> list[tuple[str, nn.Module]]:
    """The same model with the values in every place where a rule looks, the first one first."""
    found = []
    for place in ("home", "owner", "config of home", "config of model"):
        block = Outer()
        model = nest(layers__0=block, layers__1=Outer())
        scope: Any = {"home": block, "owner": block.inner.q_proj}.get(place)
        if place == "config of home":
            block.config = scope = SimpleNamespace()
        elif place == "config of model":
            model.config = scope = SimpleNamespace()
        for name, value in values.items():
            setattr(scope, name, value)
        found.append((place, model))
    return found


@pytest.mark.parametrize(("place", "model"), places({"heads": 2, "groups": 2}), ids=lambda value: str(value)[:15])
def test_numbers_come_from_the_module_its_parameter_or_a_configuration(place: str, model: nn.Module) -> None:
    roles = {"Outer": {"inner.q_proj": ["heads x (query*groups | key) if heads", "value"]}}
    parts = components(model, roles=roles)
    shapes = {part.path: part.shape for part in parts.select(layer=0) if part.role in ("query", "key")}
    assert shapes == {"layer.0.query.weight": (8, 4), "layer.0.key.weight": (4, 4)}, place


def test_the_module_of_the_rule_goes_before_its_configuration_and_that_before_the_models() -> None:
    block = Outer(SimpleNamespace(heads=4))  # of the parameter's parent
    model = nest(layers__0=block, layers__1=Outer(SimpleNamespace(heads=4)))
    model.config = SimpleNamespace(heads=5)  # would not fit
    roles = {"Outer": {"inner.q_proj": "heads x (query*2 | key)"}}
    assert components(model, roles=roles)[0].shape == (8, 4)
    block.heads = 5
    with pytest.raises(ComponentError, match="multiple of 5 x 2"):
        components(model, roles=roles)


def test_a_number_that_is_nowhere_is_an_error_that_says_where_it_was_sought() -> None:
    roles = {"Outer": {"inner.q_proj": "no_such*2 x (query | key)"}}
    said = "'layers.0.inner.q_proj.weight' of shape .*neither the module 'layers.0' nor its configuration has 'no_such'"
    with pytest.raises(ComponentError, match=said):
        components(nest(layers__0=Outer(), layers__1=Outer()), roles=roles)


def test_a_cut_that_does_not_fit_leaves_nothing_half_built() -> None:
    with pytest.raises(
        ComponentError, match=r"the rule 'query \| key' does not fit parameter 'weight' of shape \(3, 2\)"
    ):
        components(nn.Linear(2, 3), roles={"Linear": {"weight": "query | key", "bias": "query"}})


# --- names and places in paths


def test_a_parameter_of_its_own_takes_weight_or_bias_from_its_name() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.A_log = nn.Parameter(torch.zeros(2))
            self.dt_bias = nn.Parameter(torch.zeros(2))

    found = described(nest(layers__0__mixer=Mixer(), layers__1__mixer=Mixer()))
    assert found["layers.0.mixer.A_log"] == ("layer.0.ssm_a.weight", "ssm_a")
    assert found["layers.0.mixer.dt_bias"] == ("layer.0.ssm_dt.bias", "ssm_dt")


def test_numbers_in_names_tell_experts_apart() -> None:
    moe = nest(experts__0__w1=nn.Linear(2, 2, bias=False), experts__1__w1=nn.Linear(2, 2, bias=False))
    found = described(nest(layers__0__moe=moe))
    assert set(found.values()) == {
        ("layer.0.expert_gate.0.weight", "expert_gate"),
        ("layer.0.expert_gate.1.weight", "expert_gate"),
    }


def test_a_rule_of_a_class_around_the_blocks_does_not_repeat_their_number() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Outer() for _ in range(2))

    parts = components(Whole(), roles={"Whole": {"layers.#.inner.q_proj": "router"}})
    assert [part.path for part in parts.select(role="router")] == ["layer.0.router.weight", "layer.1.router.weight"]


@pytest.mark.parametrize("first", ["lm_head", "embed_tokens"])
def test_a_table_of_words_is_one_whichever_name_comes_first(first: str) -> None:
    word, head = nn.Embedding(3, 2), nn.Linear(2, 3, bias=False)
    head.weight = word.weight
    modules = {"embed_tokens": word, "lm_head": head}
    (part,) = components(nest(**{first: modules[first]} | modules))
    assert (part.path, part.role) == ("embedding.word", "embedding")
    assert part.name == f"{first}.weight"
    assert len(part.aliases) == 1


def test_paths_that_would_be_the_same_are_numbered() -> None:
    block = nest(one__q_proj=nn.Linear(2, 2, bias=False), two__q_proj=nn.Linear(2, 2, bias=False))
    assert [path for path, _ in described(nest(layers__0=block)).values()] == [
        "layer.0.query.weight#0",
        "layer.0.query.weight#1",
    ]


# --- cuts of real tensors


def gpt2(**changes: Any) -> GPT2LMHeadModel:
    config = GPT2Config(vocab_size=8, n_positions=8, n_embd=6, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    config.update(changes)
    return GPT2LMHeadModel(config)


def owned(parts: Components, name: str) -> dict[str, list[int]]:
    """The entries of a parameter by the end of the path of their component."""
    (tensor,) = {id(part.parameters[0]): part.parameters[0] for part in parts if part.pieces[0].name == name}.values()
    counting = torch.arange(tensor.numel()).reshape(tensor.shape)
    return {
        part.path: sorted(entry for view in part.pieces[0].of(counting) for entry in view.flatten().tolist())
        for part in parts
        if part.pieces[0].name == name
    }


def test_the_rule_for_the_columns_of_a_weight_cuts_the_only_dimension_of_its_bias() -> None:
    parts = components(gpt2())
    weight = torch.arange(6 * 18).reshape(6, 18).split(6, dim=1)
    bias = torch.arange(18).split(6)
    for leaf, expected in (("weight", weight), ("bias", bias)):
        assert owned(parts, f"transformer.h.0.attn.c_attn.{leaf}") == {
            f"layer.0.{word}.{leaf}": sorted(part.flatten().tolist())
            for word, part in zip(("query", "key", "value"), expected, strict=True)
        }


def test_a_cross_attention_has_rules_of_its_block() -> None:
    parts = components(gpt2(add_cross_attention=True))
    keys, values = torch.arange(6 * 12).reshape(6, 12).split(6, dim=1)
    assert owned(parts, "transformer.h.0.crossattention.c_attn.weight") == {
        "layer.0.cross_key.weight": sorted(keys.flatten().tolist()),
        "layer.0.cross_value.weight": sorted(values.flatten().tolist()),
    }
    assert len({part.path for part in parts}) == len(parts)
    assert not parts.unclaimed


def test_a_name_of_a_cut_says_the_part_and_the_component_the_rule() -> None:
    part = components(gpt2()).select(role="key", kind="weight")[0]
    assert (part.name, part.cut) == ("transformer.h.0.attn.c_attn.weight[key]", "query | key | value @-1")
    assert (part.shape, part.size, part.layer) == ((6, 6), 36, 0)


def test_users_may_cut_what_we_leave_whole_and_join_what_we_cut() -> None:
    whole = components(gpt2(), roles={"GPT2Attention": {"c_attn": "qkv"}}).select(role="qkv")
    assert [part.shape for part in whole] == [(6, 18), (18,)]
    cut = components(_models.bert(1), roles={"BertPooler": {"dense": "2 x (pooler as even | pooler as odd)"}})
    assert [part.path for part in cut.select(role="pooler")] == ["even.weight", "odd.weight", "even.bias", "odd.bias"]
