from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from evenkeel.errors import ComponentError
from evenkeel.partition._layout import Look, Part, parse
from evenkeel.partition._span import views


def look_in(**values: Any) -> Look:
    def look(word: str) -> Any:
        if word not in values:
            raise AttributeError(f"neither the module 'attn' nor its configuration has '{word}'")
        return values[word]

    return look


def counting(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape)


def cut(rule: str, *shape: int, **values: Any) -> dict[str, list[int]]:
    """The entries of every part, by label, in the order of the tensor."""
    tensor = counting(*shape)
    return {
        piece.label: sorted(views(tensor, piece.spans).flatten().tolist())
        for piece in parse(rule).cuts("attn.qkv.weight", shape, look_in(**values))
    }


def listed(**parts: Tensor) -> dict[str, list[int]]:
    return {label: sorted(part.flatten().tolist()) for label, part in parts.items()}


# --- reading


@pytest.mark.parametrize(
    ("text", "role", "word"),
    [
        ("query", "query", "query"),
        ("  query  ", "query", "query"),
        ("norm as attention_norm", "norm", "attention_norm"),
        ("embedding as embedding.word", "embedding", "embedding.word"),
    ],
)
def test_a_rule_may_name_the_role_of_the_whole_and_its_word(text: str, role: str, word: str) -> None:
    rule = parse(text)
    assert rule.text == text
    assert rule.whole
    assert rule.parts == (Part(role=role, word=word),)


def test_a_rule_is_read_with_all_that_it_may_say() -> None:
    rule = parse("heads // 2 x ( query * groups | key as k * 2|value ) @ -2 if not old and size > 3")
    assert rule.parts == (
        Part(role="query", word="query", share="groups"),
        Part(role="key", word="k", share="2"),
        Part(role="value", word="value"),
    )
    assert (rule.repeat, rule.dim, rule.experts, rule.condition) == ("heads // 2", -2, "", "not old and size > 3")
    assert not rule.whole


@pytest.mark.parametrize(
    ("text", "experts", "repeat", "dim"),
    [
        ("expert: expert_out", "1", "1", 0),
        ("expert: expert_gate | expert_in @-1", "1", "1", -1),
        ("expert: * x (expert_gate | expert_in)", "1", "*", 0),
        ("expert*num_experts: expert_in", "num_experts", "1", 0),
        ("expert * (a + b) : expert_in", "(a + b)", "1", 0),
        ("(a + b) x (query | key)", "", "(a + b)", 0),
    ],
)
def test_experts_and_repeats_are_read(text: str, experts: str, repeat: str, dim: int) -> None:
    rule = parse(text)
    assert (rule.experts, rule.repeat, rule.dim, rule.condition) == (experts, repeat, dim, "")
    assert not rule.whole


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "Query",
        "9",
        "query |",
        "| query",
        "query | | key",
        "query key",
        "query as",
        "query*",
        "query @x",
        "query @1 @2",
        "query @",
        "expert:",
        "expert*: query",
        "2 x query",
        "2 x (query | key",
        "x (query | key)",
        "2 x ()",
        "if bias",
        "query if",
        "query if ",
        "query if )",
        "query*(heads",
        "query*heads heads | key",
        "query*heads = 2 | key",
        "query\n| key",
    ],
)
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(ComponentError, match=r"(?s)the rule '.*' cannot be read: .*; see docs/components\.md"):
        parse(text)


@pytest.mark.parametrize("text", ["querry", "query | kee", "expert: querry", "2 x (query | kee)", "querry if old"])
def test_a_role_of_no_vocabulary_is_refused_with_the_nearest_one(text: str) -> None:
    with pytest.raises(ComponentError, match=r"unknown role '\w+': did you mean '(query|key)'\?"):
        parse(text)


@pytest.mark.parametrize(
    ("expression", "kind"),
    [
        ("print(1)", "Call"),
        ("__import__('os')", "Call"),
        ("heads[0]", "Subscript"),
        ("(lambda: 1)", "Lambda"),
        ("[1]", "List"),
        ("{1: 2}", "Dict"),
        ("(1, 2)", "Tuple"),
        ("[h for h in heads]", "ListComp|comprehension"),
        ("(h := 2)", "NamedExpr"),
        ("f'{heads}'", "JoinedStr"),
        ("9 ** 9", "Pow"),
        ("9 << 99", "LShift"),
        ("heads % 2", "Mod"),
        ("heads is None", "Is"),
        ("2 in heads", "In"),
    ],
)
@pytest.mark.parametrize("form", ["query*{} | key", "{} x (query | key)", "expert*{}: query", "query if {}"])
def test_expressions_hold_numbers_names_and_arithmetic_alone(form: str, expression: str, kind: str) -> None:
    with pytest.raises(ComponentError, match=rf"cannot be read: .*(holds a ({kind})|is no (role|expression))"):
        parse(form.format(expression))


def test_a_chain_of_comparisons_is_refused_before_it_is_needed() -> None:
    with pytest.raises(ComponentError, match="cannot be read"):
        parse("query if 3 > heads > 1")


@pytest.mark.parametrize("word", ["heads.__class__", "__class__", "heads.real.__init__.__globals__"])
def test_the_inside_of_objects_is_out_of_reach(word: str) -> None:
    with pytest.raises(ComponentError):
        parse(f"query*{word} | key").cuts("w", (4,), look_in(heads=2, __class__=2))


# --- conditions


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("old", True),
        ("not old", False),
        ("new", False),
        ("not new", True),
        ("heads == 4", True),
        ("heads != 4", False),
        ("heads > 3", True),
        ("heads > 4", False),
        ("old and heads == 4", True),
        ("old and new", False),
        ("new or old", True),
        ("new or not old", False),
        ("not (new or old)", False),
        ("heads - 4", False),
        ("-heads == 0 - 4", True),
        ("heads // 3 * 2 + 1 == 3", True),
        ("heads / 8 == 0.5", True),
        ("config.deep.flag", True),
        ("style == 'new'", True),
        ("style == 'old'", False),
        ("missing", False),
        ("old and missing", False),
        ("config.missing", False),
        ("heads < 5", True),
        ("heads < 4", False),
        ("heads > missing", False),
        ("missing.deeper", False),
        ("not missing.deeper and old", True),
        ("style > 1", False),  # a comparison that cannot be
        ("heads / 0", False),
    ],
)
def test_a_condition_holds_where_it_is_true(condition: str, holds: bool) -> None:
    config = SimpleNamespace(deep=SimpleNamespace(flag=1))
    look = look_in(old=True, new=False, heads=4, config=config, style="new")
    assert parse(f"query if {condition}").holds(look) == holds


@pytest.mark.parametrize("condition", ["old or missing", "missing or old", "not missing", "not config.missing"])
def test_an_attribute_that_is_not_there_counts_as_false(condition: str) -> None:
    assert parse(f"query if {condition}").holds(look_in(old=True, config=SimpleNamespace()))


def test_a_rule_without_a_condition_holds() -> None:
    assert parse("query").holds(look_in())


# --- cutting: what modelling code does, in its own words


def test_equal_parts_of_the_first_dimension() -> None:
    query, key, value = counting(6, 2).chunk(3)
    assert cut("query | key | value", 6, 2) == listed(query=query, key=key, value=value)


def test_equal_parts_of_the_last_dimension_as_in_gpt2() -> None:
    query, key, value = counting(4, 12).split(4, dim=-1)
    assert cut("query | key | value @-1", 4, 12) == listed(query=query, key=key, value=value)
    assert cut("query | key | value @1", 4, 12) == listed(query=query, key=key, value=value)


def test_words_name_the_parts() -> None:
    key, value = counting(4).chunk(2)
    assert cut("key as cross_key | value as cross_value", 4) == listed(cross_key=key, cross_value=value)


def test_proportions_as_of_grouped_queries() -> None:
    query, key, value = counting(16, 3).split([8, 4, 4])
    shares = "query*num_heads | key*num_kv | value*num_kv"
    assert cut(shares, 16, 3, num_heads=4, num_kv=2) == listed(query=query, key=key, value=value)


def test_interleaved_heads_as_in_bloom() -> None:
    heads = counting(2 * 3 * 4, 5).view(2, 3, 4, 5)
    expected = listed(query=heads[:, 0], key=heads[:, 1], value=heads[:, 2])
    assert cut("num_heads x (query | key | value)", 24, 5, num_heads=2) == expected


def test_interleaved_groups_as_in_falcon() -> None:
    groups = counting(2 * (3 + 2) * 4, 5).view(2, 5, 4, 5)
    expected = listed(query=groups[:, :3], key=groups[:, 3], value=groups[:, 4])
    assert cut("kv x (query*heads/kv | key | value)", 40, 5, kv=2, heads=6) == expected


def test_entry_by_entry_as_in_gpt_oss() -> None:
    tensor = counting(3, 8)
    expected = listed(gate=tensor[:, ::2], up=tensor[:, 1::2])
    assert cut("* x (expert_gate as gate | expert_in as up) @-1", 3, 8) == expected


def test_experts_by_the_first_dimension() -> None:
    tensor = counting(2, 3, 4)
    assert cut("expert: expert_out", 2, 3, 4) == listed(**{"0.expert_out": tensor[0], "1.expert_out": tensor[1]})
    expected = {f"{e}.{word}": tensor[e, :, at] for e in (0, 1) for word, at in (("a", slice(2)), ("b", slice(2, 4)))}
    assert cut("expert: expert_gate as a | expert_in as b @-1", 2, 3, 4) == listed(**expected)


def test_experts_as_slices_one_after_the_other() -> None:
    tensor = counting(6, 4)
    expected = listed(**{f"{expert}.expert_in": tensor[2 * expert : 2 * expert + 2] for expert in range(3)})
    assert cut("expert*num_experts: expert_in", 6, 4, num_experts=3) == expected


def test_a_part_with_no_share_is_none() -> None:
    assert cut("query*2 | key*0 | value*1", 6) == {"query": [0, 1, 2, 3], "value": [4, 5]}


def test_cuts_know_their_place_and_shape() -> None:
    cuts = parse("expert: * x (expert_gate | expert_in) @-1").cuts("w", (2, 3, 8), look_in())
    assert [(piece.label, piece.expert, piece.shape, piece.part.role) for piece in cuts] == [
        ("0.expert_gate", 0, (3, 4), "expert_gate"),
        ("0.expert_in", 0, (3, 4), "expert_in"),
        ("1.expert_gate", 1, (3, 4), "expert_gate"),
        ("1.expert_in", 1, (3, 4), "expert_in"),
    ]
    assert all(len({span.dim for span in piece.spans}) == len(piece.spans) for piece in cuts)


@st.composite
def rules_that_fit(draw: st.DrawFn) -> tuple[str, tuple[int, ...]]:
    """A rule of any form, and a shape that it fits."""
    shares = draw(st.lists(st.integers(0, 3), min_size=2, max_size=4).filter(any))
    every = draw(st.booleans())
    repeat, unit = draw(st.integers(1, 4)), 1 if every else draw(st.integers(1, 3))
    shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    shape[dim] = repeat * unit * sum(shares)
    parts = " | ".join(f"query as w{index}*{share}" for index, share in enumerate(shares))
    rule = f"{'*' if every else repeat} x ({parts})" if every or repeat > 1 or draw(st.booleans()) else parts
    if draw(st.booleans()):
        return f"expert: {rule} @{dim}", (draw(st.integers(1, 3)), *shape)
    return f"{rule} @{dim}", tuple(shape)


@given(rules_that_fit())
def test_cuts_hold_every_entry_exactly_once(case: tuple[str, tuple[int, ...]]) -> None:
    rule, shape = case
    seen = torch.zeros(shape, dtype=torch.int64)
    for piece in parse(rule).cuts("w", shape, look_in()):
        view = views(seen, piece.spans)
        view += 1
        assert view.numel() == torch.Size(piece.shape).numel() > 0
    assert (seen == 1).all()


@given(
    st.lists(st.integers(0, 7), max_size=3),
    st.sampled_from(
        [
            "query | key | value",
            "query*2 | key*1",
            "heads x (query | key)",
            "* x (query | key)",
            "expert: query | key",
            "expert: query",
            "expert*heads: query",
            "heads x (query*heads/2 | key*heads-2)",
        ]
    ),
    st.integers(-2, 2),
    st.sampled_from([-1, 0, 1, 2, 3, 2.0, 0.5, True, None, "two"]),
)
def test_a_rule_either_fits_completely_or_says_why_not(rule_shape: list[int], rule: str, dim: int, heads: Any) -> None:
    shape, seen, text = tuple(rule_shape), torch.zeros(rule_shape, dtype=torch.int64), f"{rule} @{dim}"
    try:
        cuts = parse(text).cuts("some.weight", shape, look_in(heads=heads))
    except ComponentError as error:
        said = str(error)
    else:
        for piece in cuts:
            view = views(seen, piece.spans)
            view += 1
        assert (seen == 1).all()
        return
    assert said.startswith(f"the rule '{text}' does not fit parameter 'some.weight' of shape {shape}: ")


# --- what does not fit


@pytest.mark.parametrize(
    ("rule", "shape", "said"),
    [
        ("query | key | value", (8, 4), "expected a multiple of 1 x 1+1+1 = 3 along dimension 0, found 8"),
        ("query | key | value @-1", (6, 4), "expected a multiple of 1 x 1+1+1 = 3 along dimension 1, found 4"),
        ("heads x (query*2 | key)", (8,), "expected a multiple of 4 x 2+1 = 12 along dimension 0, found 8"),
        ("* x (query | key)", (7,), "found 7"),
        ("query*0 | key*0", (4,), "expected a multiple of 1 x 0+0 = 0 along dimension 0, found 4"),
        ("* x (query*0 | key*0)", (4,), "= 0 along dimension 0, found 4"),
        ("0 x (query | key)", (4,), "expected a multiple of 0 x 1+1 = 0 along dimension 0, found 4"),
        ("query | key @1", (4,), "expected a dimension 1, found 1 to choose from"),
        ("query | key @-3", (4, 4), "expected a dimension -3, found 2 to choose from"),
        ("query | key", (), "expected at least 1 dimensions, found 0"),
        ("expert: query | key @1", (2, 4), "expected a dimension 1, found 1 to choose from"),
        ("expert: query", (4,), "expected at least 2 dimensions, found 1"),
        ("expert*heads: query", (6, 2), "expected one part and 4 equal slices along dimension 0"),
        ("expert*heads: query | key", (8, 2), "expected one part and 4 equal slices along dimension 0"),
        ("expert*0: query", (8, 2), "0 equal slices"),
        ("query*kv_heads | key", (8,), "'kv_heads' has no value: neither the module 'attn' nor its"),
        ("kv_heads x (query | key)", (8,), "'kv_heads' has no value"),
        ("expert*config.experts: query", (8,), "'config.experts' has no value"),
        ("query*heads/0 | key", (8,), "'heads/0' has no value: division"),
        ("query*name | key", (8,), "'name' is 'two', which is no whole number"),
        ("query*heads*name*heads.real/name | key", (8,), "has no value"),
        ("query*old | key", (8,), "'old' is True, which is no whole number"),
        ("query*nothing | key", (8,), "'nothing' is None, which is no whole number"),
        ("query*heads/3 | key", (8,), "'heads/3' is 1.333"),
        ("query*1-heads | key", (8,), "'1-heads' is -3, which is no whole number"),
        ("query*huge | key", (8,), "'huge' is inf, which is no whole number"),
        ("query*1e999 | key", (8,), "'1e999' is inf, which is no whole number"),
        ("query*odd | key", (8,), "'odd' is nan, which is no whole number"),
    ],
)
def test_a_misfit_names_tensor_rule_expected_and_found(rule: str, shape: tuple[int, ...], said: str) -> None:
    values = {"heads": 4, "old": True, "name": "two", "nothing": None, "huge": float("inf"), "odd": float("nan")}
    look = look_in(**values, config=SimpleNamespace())
    with pytest.raises(ComponentError) as caught:
        parse(rule).cuts("attn.qkv.weight", shape, look)
    assert said in str(caught.value)
    assert str(caught.value).startswith(
        f"the rule '{rule}' does not fit parameter 'attn.qkv.weight' of shape {shape}: "
    )
    assert "pass roles=" in str(caught.value)


def test_shares_that_are_whole_numbers_written_otherwise_count() -> None:
    values: dict[str, Callable[[], Any]] = {"six": lambda: 6.0, "half": lambda: 0.5}
    expected = {"query": [0, 1, 2], "key": [3]}
    assert cut("query*six*half | key*half*2", 4, **{name: value() for name, value in values.items()}) == expected
