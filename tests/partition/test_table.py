from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests import _models
from torch import nn

from evenkeel import components
from evenkeel.errors import ComponentError
from evenkeel.partition import _table
from evenkeel.partition._table import RuleTable, entry_point_table, family_of, family_table, read_table


def role(found: _table.Found | None) -> str | None:
    return found and found.rules[0].parts[0].role


# --- looking up


def test_the_longest_end_of_a_name_holds() -> None:
    table = RuleTable({"block": {"dense": "ffn_in", "output.dense": "ffn_out", "attention.output.dense": "query"}})
    names = ["attention.output.dense", "other.output.dense", "output.dense", "inner.dense", "dense"]
    assert [role(table.of_names("block", name)) for name in names] == [
        "query",
        "ffn_out",
        "ffn_out",
        "ffn_in",
        "ffn_in",
    ]
    for name in ("mydense", "dense.inner", "denser", ""):
        assert table.of_names("block", name) is None
    assert table.of_names("outside", "dense") is None


def test_a_class_speaks_of_names_from_its_own_module_on() -> None:
    table = RuleTable({"Attention": {"q": "query", "out.dense": "attention_output"}})
    assert role(table.of_class("Attention", "q")) == "query"
    assert role(table.of_class("Attention", "out.dense")) == "attention_output"
    for name in ("deep.q", "dense", "q.weight", "out"):
        assert table.of_class("Attention", name) is None
    assert table.of_class("OtherAttention", "q") is None
    assert (table.knows("Attention"), table.knows("OtherAttention")) == (True, False)


def test_a_sign_stands_for_every_number_and_a_number_for_itself() -> None:
    table = RuleTable({"Moe": {"experts.#.w1": "expert_gate", "experts.0.w1": "shared_expert_gate"}})
    first, tenth = table.of_class("Moe", "experts.0.w1"), table.of_class("Moe", "experts.10.w1")
    assert first is not None
    assert tenth is not None
    assert (role(first), first.key, first.numbers) == ("shared_expert_gate", "experts.0.w1", ())
    assert (role(tenth), tenth.key, tenth.numbers) == ("expert_gate", "experts.#.w1", ("10",))
    for name in ("experts.x.w1", "experts.w1", "experts.1x.w1", "experts.1.2.w1"):
        assert table.of_class("Moe", name) is None


def test_a_star_stands_for_any_one_word() -> None:
    table = RuleTable({"Xmod": {"adapters.*.dense": "adapter", "adapters.en.dense": "ffn_in", "*.#.w": "conv"}})
    for name, wanted, numbers in (
        ("adapters.de_DE.dense", "adapter", ("de_DE",)),
        ("adapters.en.dense", "ffn_in", ()),
        ("layers.3.w", "conv", ("layers", "3")),
    ):
        found = table.of_class("Xmod", name)
        assert found is not None
        assert (role(found), found.numbers) == (wanted, numbers)
    for name in ("adapters.dense", "adapters.a.b.dense", "layers.x.w", "deep.layers.3.w"):
        assert table.of_class("Xmod", name) is None


def test_a_dot_or_sign_in_a_name_is_no_expression() -> None:
    assert RuleTable({"A": {"*.a+b": "query"}}).of_class("A", "x.aab") is None
    assert RuleTable({"A": {"*.q": "query"}}).of_class("A", "xxq") is None


def test_numbers_are_told_in_order_those_before_the_end_of_the_name_too() -> None:
    found = RuleTable({"block": {"experts.#.w1": "expert_gate"}}).of_names("block", "groups.3.experts.12.w1")
    assert found is not None
    assert found.numbers == ("3", "12")


def test_a_table_lists_its_rules() -> None:
    table = RuleTable({"A": {"q": "query", "k": "key"}, "block": {"v": "value"}, "empty": {}})
    assert list(table) == [("A", "q"), ("A", "k"), ("block", "v")]


def test_a_list_is_kept_in_order() -> None:
    found = RuleTable({"block": {"w": ["query if old", "key"]}}).of_names("block", "w")
    assert found is not None
    assert [rule.text for rule in found.rules] == ["query if old", "key"]


# --- what is no table


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"block": "query"}, "roles has 'query' for 'block'; it needs a mapping"),
        ({"query": ["q_proj"]}, r"roles has \['q_proj'\] for 'query'"),
        ({"block": {"q": 1}}, "the rule for 'q' of 'block' is 1; it needs a text"),
        ({"block": {"q": []}}, r"the rule for 'q' of 'block' is \[\]; it needs a text"),
        ({"block": {"q": ["query", 2]}}, r"is \['query', 2\]; it needs a text"),
        ({"block": {"q": None}}, "is None; it needs a text"),
        ({"block": {"q": "query |"}}, "cannot be read"),
        ({"block": {"q": ["query", "exit()"]}}, "cannot be read"),
    ],
)
def test_what_is_no_table_of_rules_is_refused(rules: Any, said: str) -> None:
    for read in (RuleTable, read_table, lambda rules: components(_models.bert(), roles=rules)):
        with pytest.raises(ComponentError, match=said):
            read(rules)


@pytest.mark.parametrize("given", [["query"], 3, {"query"}])
def test_rules_of_another_type_are_refused(given: Any) -> None:
    with pytest.raises(ComponentError):
        read_table(given)


# --- files


def test_rules_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text('# ours\n[Odd]\n"deep.dense" = "query | key"\n[block]\nd = ["norm if x", "norm as d"]\n', "utf-8")
    for given in (path, str(path)):
        table = read_table(given)
        assert list(table) == [("Odd", "deep.dense"), ("block", "d")]
        found = table.of_class("Odd", "deep.dense")
        assert found is not None
        assert [part.role for part in found.rules[0].parts] == ["query", "key"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[block\n", "cannot be read .*give a TOML file"),
        (b'[block]\nq = "query"\nq = "key"\n', "cannot be read .*give a TOML file"),
        (b"\xff\xfe", "cannot be read .*give a TOML file"),
        (b'block = "query"\n', "roles has 'query' for 'block'"),
        (b'[block]\nattn.q = "query"\n', "'attn' of 'block' is {'q': 'query'}"),  # the name lacks its quotes
    ],
    ids=["open bracket", "twice", "no text", "no table", "no quotes"],
)
def test_a_broken_file_is_refused_by_name_or_place(text: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_bytes(text)
    with pytest.raises(ComponentError, match=said) as caught:
        components(_models.bert(), roles=path)
    assert str(path) in str(caught.value) or "of TOML" not in said


@pytest.mark.parametrize("name", ["nothing.toml", "."])
def test_a_file_that_is_not_there_is_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ComponentError, match=f"the rules in '.*{tmp_path.name}.*' cannot be read"):
        read_table(tmp_path / name)


# --- families


def test_a_class_belongs_to_the_file_that_defines_it() -> None:
    assert family_of(type(_models.bert())) == "bert"
    assert family_of(nn.MultiheadAttention) == "torch"
    assert family_of(type("Remote", (), {"__module__": "transformers_modules.me.modeling_mine"})) == "mine"
    assert family_of(type("Own", (), {"__module__": "__main__"})) == ""
    assert family_of(type("Own", (), {"__module__": "my_models.gpt2"})) == ""  # somebody's own file of that name


def test_a_family_without_a_file_has_no_table() -> None:
    assert family_table("no_such_family") is None
    gpt2 = family_table("gpt2")
    assert gpt2 is not None
    assert gpt2.knows("GPT2Attention")
    assert family_table("gpt2") is gpt2  # read once


# --- other packages


class Odd(nn.Module):
    """A block with a name that no rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.gadget = nn.Linear(6, 6)
        self.q_proj = nn.Linear(6, 6)


class OddModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Odd() for _ in range(2))


Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Pretend that packages are installed that bring these rules."""

    def pretend(*loaded: Any) -> None:
        def load(value: Any) -> Any:
            if isinstance(value, Exception):
                raise value
            return value

        points = [
            SimpleNamespace(name=f"p{index}", value=f"package{index}:RULES", load=lambda value=value: load(value))
            for index, value in enumerate(loaded)
        ]
        monkeypatch.setattr(
            importlib.metadata, "entry_points", lambda *, group: points if group == "evenkeel.roles" else []
        )
        entry_point_table.cache_clear()

    yield pretend
    entry_point_table.cache_clear()


def roles_of(model: nn.Module, **options: Any) -> dict[str, str | None]:
    return {part.name: part.role for part in components(model, **options) if part.name.startswith("layers.0.")}


def test_without_packages_there_are_no_rules_of_theirs(install: Install) -> None:
    install()
    assert entry_point_table() is None
    assert roles_of(OddModel())["layers.0.gadget.weight"] == "other"


@pytest.mark.parametrize("made", [False, True], ids=["mapping", "function"])
def test_rules_of_packages_count_before_our_own(install: Install, made: bool) -> None:
    rules = {"Odd": {"gadget": "router"}, "block": {"q_proj": "adapter"}, "Elsewhere": {"x": "norm"}}
    install((lambda: rules) if made else rules)  # what a model does not have is no error here
    assert roles_of(OddModel()) == {
        "layers.0.gadget.weight": "router",
        "layers.0.gadget.bias": "router",
        "layers.0.q_proj.weight": "adapter",
        "layers.0.q_proj.bias": "adapter",
    }


def test_users_rules_count_before_those_of_packages(install: Install) -> None:
    install({"Odd": {"gadget": "router", "q_proj": "adapter"}})
    found = roles_of(OddModel(), roles={"block": {"gadget": "conv"}})
    assert found["layers.0.gadget.weight"] == "conv"
    assert found["layers.0.q_proj.weight"] == "adapter"


def test_packages_may_share_a_table(install: Install) -> None:
    install({"Odd": {"gadget": "router"}}, {"Odd": {"q_proj": "adapter"}})
    assert set(roles_of(OddModel()).values()) == {"router", "adapter"}


@pytest.mark.parametrize(
    ("loaded", "said"),
    [
        (
            ({"Odd": {"gadget": "router"}}, {"Odd": {"gadget": "conv"}}),
            "two packages bring rules for 'gadget' of 'Odd'",
        ),
        (
            (ImportError("no such module"),),
            "'p0' of the entry point 'package0:RULES' cannot be loaded .*no such module",
        ),
        ((None,), "'p0' of the entry point .* cannot be loaded"),
        (({"Odd": "router"},), "'p0' of the entry point .* cannot be loaded"),
        ((lambda: 1 / 0,), "cannot be loaded .*division by zero"),
        (({"Odd": {"gadget": "router |"}},), "the rule 'router |' cannot be read"),
    ],
    ids=["twice", "import", "none", "no table", "raises", "unreadable"],
)
def test_a_package_that_brings_no_rules_is_named(install: Install, loaded: Any, said: str) -> None:
    install(*loaded)
    with pytest.raises(ComponentError, match=said.replace("|", r"\|")):
        components(OddModel())


# --- rules that fit nothing


@pytest.mark.parametrize(
    ("roles", "unused"),
    [
        ({"Od": {"gadget": "router"}}, ["'gadget' of 'Od'"]),
        ({"Odd": {"gadget": "router", "gadgets": "router"}}, ["'gadgets' of 'Odd'"]),
        ({"block": {"layers.0.gadget": "router"}}, ["'layers.0.gadget' of 'block'"]),
        ({"outside": {"gadget": "router"}}, ["'gadget' of 'outside'"]),
        ({"Odd": {"a": "router"}, "block": {"b": "norm"}}, ["'a' of 'Odd'", "'b' of 'block'"]),
    ],
)
def test_a_users_rule_that_fits_nothing_is_an_error(roles: Any, unused: list[str]) -> None:
    with pytest.raises(ComponentError) as caught:
        components(OddModel(), roles=roles)
    assert f"roles names {', '.join(unused)}, which" in str(caught.value)


def test_a_rule_is_used_where_the_parameter_is_frozen() -> None:
    model = OddModel()
    for block in model.layers:
        block.get_submodule("gadget").requires_grad_(False)
    assert len(components(model, roles={"Odd": {"gadget": "router"}})) == 4


def test_a_rule_whose_name_fits_is_used_though_its_condition_does_not_hold() -> None:
    found = roles_of(OddModel(), roles={"Odd": {"q_proj": ["router if no_such_attribute"]}})
    assert found["layers.0.q_proj.weight"] == "query"


def test_a_users_rule_that_is_beaten_everywhere_is_an_error_too() -> None:
    roles = {"Odd": {"gadget": "router"}, "block": {"gadget": "conv"}}
    with pytest.raises(ComponentError, match="'gadget' of 'block', which holds for nothing .*another rule is nearer"):
        components(OddModel(), roles=roles)


def test_no_rules_at_all_are_no_error() -> None:
    assert roles_of(OddModel(), roles={}) == roles_of(OddModel())
