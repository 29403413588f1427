"""``evenkeel components``, on the embedded model and on bare configurations."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from evenkeel.cli._draw import Tree, partition_table
from evenkeel.cli._fold import Node, fold
from evenkeel.models import TINY, structure
from evenkeel.partition import components


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpt2") / "gpt2.json"
    sizes = {"n_layer": 12, "n_embd": 768, "n_head": 12}
    path.write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **sizes}), encoding="utf-8")
    return path


@pytest.fixture
def unknown(tmp_path: Path) -> Path:
    """Rules that know less than those of the package."""
    path = tmp_path / "rules.toml"
    path.write_text('[block]\n"attention.self.query" = "other"\n"attention.self.key" = "qkv"\n', encoding="utf-8")
    return path


def drawn(width: int, renderable: object, *, encoding: str = "utf-8") -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width)
    console.print(renderable)
    file.seek(0)
    return file.read().splitlines()


# --- the tree


def test_the_tree_of_a_model_fits_a_screen(evenkeel: Callable[..., Any], gpt2: Path) -> None:
    said = evenkeel("components", gpt2)
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0] == f"{gpt2}: GPT2LMHeadModel (gpt2), 196 components, 124,439,808 entries"
    assert len(lines) < 40
    assert max(map(len, lines[1:])) <= 80
    assert "\x1b" not in said.out
    assert "layer 0-11, 12 alike   12 x 7,087,872     85,054,464" in lines
    assert "├─ attn.c_attn  cut as query | key | value @-1" in lines
    assert "│  ├─ query            768 x 768 + 768       590,592" in lines
    assert "│     tied with lm_head.weight" in lines
    assert lines[-1] == "Every entry has a role: nothing is unclaimed."


def test_totals_are_by_role(evenkeel: Callable[..., Any], gpt2: Path) -> None:
    rows = [line.split() for line in evenkeel("components", gpt2).out.splitlines()]
    assert ["query", "24", "7,087,104", "5.7%"] in rows
    assert ["all", "196", "124,439,808"] in rows


def test_all_unfolds(evenkeel: Callable[..., Any], gpt2: Path) -> None:
    lines = evenkeel("components", gpt2, "--all").out.splitlines()
    assert sum("query.bias" in line for line in lines) == 12
    assert sum(line.startswith("layer ") for line in lines) == 12


def test_what_no_rule_knows_is_named(evenkeel: Callable[..., Any], unknown: Path) -> None:
    said = evenkeel("components", TINY, "--roles", unknown)
    assert said.code == 0
    assert "nothing is unclaimed" not in said.out
    _, _, tail = said.out.partition("unclaimed, no rule knows them: 99,072 entries\n")
    assert tail.splitlines()[:4] == [
        "  bert.encoder.layer.#.attention.self.query.weight  (6 alike)",
        "  bert.encoder.layer.#.attention.self.query.bias  (6 alike)",
        "fused and not cut, no rule says how they lie",
        "  bert.encoder.layer.#.attention.self.key.weight  (6 alike)",
    ]
    assert "--roles" in tail.splitlines()[-1]


@pytest.mark.parametrize("width", [36, 50, 60, 80, 200])
def test_lines_keep_to_the_width_and_tell_all(width: int) -> None:
    lines = drawn(width, Tree(fold(components(structure(TINY)))))
    assert max(map(len, lines)) <= width
    words = {word for line in lines for word in line.split()}
    assert {"attention_output", "ffn_norm", "512", "128", "1,189,632"} <= words
    shapes = "512 x 128 + 512"
    assert (shapes in " ".join(lines)) or width == 36


def test_long_labels_are_folded() -> None:
    node = Node(label="a_very_long_name_" * 5, size=7, role="other", shapes=((7,),))
    lines = drawn(60, Tree([Node(label="layer 0", size=7, children=(node,))]))
    assert max(map(len, lines)) <= 60
    assert "a_very_long_name_" * 5 in "".join(line[3:].strip().split("  ")[0] for line in lines[1:])


def test_plain_letters_where_the_terminal_knows_no_others() -> None:
    lines = drawn(80, Tree(fold(components(structure(TINY)))), encoding="ascii")
    assert any(line.startswith("|- query ") for line in lines)
    assert any(line.startswith("`- ffn_norm ") for line in lines)


# --- other forms


def test_json_holds_every_component(evenkeel: Callable[..., Any], gpt2: Path) -> None:
    said = evenkeel("components", gpt2, "--json")
    assert (said.code, said.err) == (0, "")
    found = json.loads(said.out)
    parts = components(structure(str(gpt2)))
    assert [part["name"] for part in found] == [part.name for part in parts]
    assert sum(part["size"] for part in found) == parts.size
    key = next(part for part in found if part["path"] == "layer.3.key.bias")
    assert key == {
        "name": "transformer.h.3.attn.c_attn.bias[key]",
        "path": "layer.3.key.bias",
        "stack": None,
        "layer": 3,
        "role": "key",
        "kind": "bias",
        "shape": [768],
        "size": 768,
        "cut": "query | key | value @-1",
        "aliases": [],
        "shared": False,
    }
    assert found[0]["aliases"] == ["lm_head.weight"]


def test_json_of_a_coarser_partition(evenkeel: Callable[..., Any]) -> None:
    found = json.loads(evenkeel("components", TINY, "--json", "--by", "global").out)
    assert [(part["name"], part["size"], part["role"]) for part in found] == [("global", 1229423, None)]


@pytest.mark.parametrize(
    ("by", "row"),
    [
        ("tensor", ["layer.0.query.weight", "query", "128 x 128", "16,384"]),
        ("module", ["bert.encoder.layer.0.attention.self.query", "query", "16,512", "1.3%"]),
        ("role", ["query", "query", "99,072", "8.1%"]),
        ("layer", ["layer.0", "", "198,272", "16.1%"]),
        ("global", ["global", "", "1,229,423", "100.0%"]),
    ],
)
def test_coarser_partitions_are_tables(evenkeel: Callable[..., Any], by: str, row: list[str]) -> None:
    said = evenkeel("components", TINY, "--by", by)
    assert (said.code, said.err) == (0, "")
    assert f"{len(components(structure(TINY), by)):,} component" in said.out.splitlines()[0]
    lines = drawn(160, partition_table(components(structure(TINY), by), shapes=by == "tensor"))
    assert " ".join(row).split() in [line.split() for line in lines]


def test_the_head_can_be_chosen(evenkeel: Callable[..., Any]) -> None:
    assert "BertModel (bert), " in evenkeel("components", TINY, "--head", "base").out


# --- what people get wrong


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["./none"], "error: there is no folder and no file './none'; give"),
        ([TINY, "--by", "laye"], "error: unknown partition 'laye': did you mean 'layer'?"),
        ([TINY, "--head", "causl-lm"], "error: unknown head 'causl-lm': did you mean 'causal-lm'?"),
        ([TINY, "--roles", "none.toml"], "error: the rules in 'none.toml' cannot be read"),
        ([], "Missing argument 'MODEL'"),
    ],
)
def test_one_message_and_exit_code_2(evenkeel: Callable[..., Any], arguments: list[str], said: str) -> None:
    found = evenkeel("components", *arguments)
    assert (found.code, found.out) == (2, "")
    assert said in " ".join(found.err.replace("│", " ").split())


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import atexit, sys; from evenkeel.cli import main\n"
        "heavy = ('torch', 'transformers', 'datasets')\n"
        "atexit.register(lambda: print('loaded:', [name for name in heavy if name in sys.modules]))\n"
        "main()"
    )
    command = [sys.executable, "-c", code, "components", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--json" in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded: []"
