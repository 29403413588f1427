from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import torch.nn
import transformers

import evenkeel.partition
from evenkeel.partition import ROLES
from evenkeel.partition._layout import Rule, parse
from evenkeel.partition._roles import joint

FILES = sorted((Path(evenkeel.partition.__file__).parent / "rules").glob("*.toml"))
SHARED = ("common", "torch")  # files of no family
REMOTE = ("baichuan", "chatglm")  # whose code is published with their weights and is not in transformers


def tables(path: Path) -> dict[str, dict[str, str | list[str]]]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def rules(path: Path) -> list[tuple[str, str, Rule]]:
    return [
        (table, name, parse(text))
        for table, names in tables(path).items()
        for name, texts in names.items()
        for text in ([texts] if isinstance(texts, str) else texts)
    ]


def test_every_role_says_what_it_is() -> None:
    assert ROLES
    for role, meaning in ROLES.items():
        assert re.fullmatch("[a-z_]+", role)
        assert meaning.strip()
    assert len(set(ROLES.values())) == len(ROLES)
    assert "other" in ROLES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_rule_of_the_package_is_readable_and_of_the_vocabulary(path: Path) -> None:
    found = rules(path)
    assert found
    for table, name, rule in found:
        where = f"{path.name}, '{name}' of '{table}'"
        assert all(bit in "#*" or bit.isidentifier() or bit.isdigit() for bit in name.split(".")), where
        for part in rule.parts:
            assert part.role in ROLES, where
            assert part.role != "other", where  # no rule is the same
            assert not part.word.startswith("layer."), where  # that is said already
        words = [part.word for part in rule.parts]
        assert len(set(words)) == len(words), where  # two parts would get the same name


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.stem not in SHARED + REMOTE], ids=lambda path: path.stem
)
def test_a_family_speaks_of_classes_that_its_file_defines(path: Path) -> None:
    folder = Path(transformers.__file__).parent / "models"
    sources = [file.read_text(encoding="utf-8") for file in folder.glob(f"*/modeling_{path.stem}.py")]
    assert sources, "transformers has no such family"
    for table in tables(path):
        assert any(re.search(rf"^ *class {table}\(", source, re.MULTILINE) for source in sources), table


def test_the_rules_for_torch_speak_of_classes_that_torch_has() -> None:
    (path,) = (path for path in FILES if path.stem == "torch")
    assert [table for table in tables(path) if not hasattr(torch.nn, table)] == []


def test_the_common_names_are_those_of_places() -> None:
    (path,) = (path for path in FILES if path.stem == "common")
    assert set(tables(path)) == {"block", "outside"}


@pytest.mark.parametrize(
    ("roles", "together"),
    [
        (["query", "key", "value"], "qkv"),
        (["value", "query", "key"], "qkv"),
        (["ffn_gate", "ffn_in"], "ffn_in"),
        (["expert_in", "expert_gate"], "expert_in"),
        (["ffn_out"], "ffn_out"),
        (["query", "query"], "query"),
        (["key", "value"], "key"),  # nothing is called so: the first
    ],
)
def test_roles_together_have_a_word_where_there_is_one(roles: list[str], together: str) -> None:
    assert joint(roles) == joint(iter(roles)) == together
    assert together in ROLES
