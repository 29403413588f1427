"""``evenkeel methods``: the list, the pages, JSON, and formulas in plain letters."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.color import ColorSystem
from tests._tiers import few

import evenkeel.methods as package
from evenkeel.cli._console import console
from evenkeel.cli._formula import plain_formula
from evenkeel.cli._readable import readable
from evenkeel.methods import ComponentClipping, FullFineTuning, GradualUnfreezing, Method, known_methods


@dataclass(frozen=True, kw_only=True)
class Foreign(Method):
    r"""Müller's way: pull :math:`\theta` back to ``start``, see :class:`~torch.optim.AdamW`.

    .. math::

        \theta_t \leftarrow \theta_t - \frac{\lambda}{1 + \lambda} (\theta_t - \theta_0), \qquad
        \lambda \ge 0

    .. math::

        + 1

    It has

    - a first point that is so long that it does not fit into a single line of eighty columns, not at all;
    - a second one::

        code = "as it   stands"

    Attributes:
        strength: :math:`\lambda`, the strength; see :func:`evenkeel.components`.
        rule: which.
    """

    name: ClassVar[str] = "a-foreign-method-with-a-very-long-name"
    summary: ClassVar[str] = "a method as another package would bring it, with [brackets] and a summary of some length"
    source: ClassVar[str] = "Müller 2020"
    owns: ClassVar[frozenset[Any]] = frozenset({"clipping", "phases"})

    strength: float
    rule: str = "a rule"


@dataclass(frozen=True, kw_only=True)
class Mute(Method):
    name: ClassVar[str] = "mute"
    summary: ClassVar[str] = "says nothing"
    source: ClassVar[str] = "nowhere"

    strength: float = 1.0


class Bare(Method):
    """No dataclass, no summary, no source."""

    name: ClassVar[str] = "bare"


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[Method]]:
    """Let there be three methods of ours, and two that another package brings."""
    known = {method.name: method for method in (FullFineTuning, GradualUnfreezing, ComponentClipping, Foreign, Mute)}
    monkeypatch.setattr(package, "known_methods", lambda: known)
    return known


def words(text: str) -> str:
    return " ".join(text.split())


# --- the list


@pytest.mark.parametrize("width", [50, 80, 120])
def test_the_list_has_every_method_and_keeps_to_the_width(
    evenkeel: Callable[..., Any], foreign: dict[str, type[Method]], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setattr(console, "width", width)  # which it may have read from COLUMNS before
    said = evenkeel("methods")
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert max(map(len, lines)) <= width
    assert [line for line in lines if line != line.rstrip() or "…" in line or "\x1b" in line] == []
    told = words(said.out)
    assert [name for name, method in foreign.items() if method.summary not in told and name != Foreign.name] == []
    starts = [line.split()[0] for line in lines if line and line[0] != " "]
    assert starts[:3] == list(foreign)[:3]
    assert "evenkeel methods NAME" in told


def test_long_names_are_folded_and_complete(evenkeel: Callable[..., Any], foreign: dict[str, type[Method]]) -> None:
    lines = evenkeel("methods").out.splitlines()
    at = next(index for index, line in enumerate(lines) if line.startswith("a-foreign"))
    assert "".join(line[:28].strip() for line in lines[at : at + 2]) == Foreign.name
    assert words(" ".join(line[30:] for line in lines[at : at + 3])).startswith(Foreign.summary[:60])


# --- a page


@pytest.mark.parametrize("width", few([60, 80, 120], {60}))
@pytest.mark.parametrize("name", known_methods())
def test_every_method_has_a_page(
    evenkeel: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, name: str, width: int
) -> None:
    monkeypatch.setattr(console, "width", width)  # which it may have read from COLUMNS before
    said = evenkeel("methods", name)
    assert (said.code, said.err) == (0, "")
    page, _, use = said.out.partition("\nuse\n")
    assert max(map(len, page.splitlines())) <= width
    method = known_methods()[name]
    assert words(page).startswith(f"{name}: {method.summary}")
    assert method.source in words(page)
    assert [field.name for field in dataclasses.fields(method) if f"\n  {field.name} " not in page] == []  # type: ignore[arg-type]
    assert re.search(r":\w+:`|``|\\[A-Za-z]|\.\. math", page) is None  # all of it is understood
    assert f'MethodTrainer(..., methods=["{name}' in use
    assert f"evenkeel finetune --task rte --methods {name}" in use


def test_the_page_of_a_method_of_ours(evenkeel: Callable[..., Any]) -> None:
    lines = evenkeel("methods", "component-clip").out.splitlines()
    assert lines[0] == "component-clip: all weights at once, the gradient norm of each component clipped"
    assert "source   Yang & Ma 2022, arXiv 2210.10325" in lines
    assert re.search(r"^decides  clipping \(no mix with [^)]*full", "\n".join(lines), re.MULTILINE)
    assert lines[lines.index("options") :] == [
        "options",
        "  max_norm  float | Mapping[str, float] | Threshold, default 0.05",
        "            the norm that each component's gradient may have, or norms by role",
        "            or path.",
        '  by        "tensor" | "module" | "role" | "layer" | "global", default tensor',
        "            what counts as one component, see `evenkeel.components`.",
        "",
        "use",
        '  MethodTrainer(..., methods=["component-clip:max_norm=0.05"])',
        "  evenkeel finetune --task rte --methods component-clip:max_norm=0.05 --out DIR",
    ]


def test_none_is_told_in_words(evenkeel: Callable[..., Any]) -> None:
    assert "float | None, default none: as the training says" in evenkeel("methods", "gradual-unfreezing").out


def test_the_page_of_anothers_method(evenkeel: Callable[..., Any], foreign: dict[str, type[Method]]) -> None:
    said = evenkeel("methods", Foreign.name)
    assert (said.code, said.err) == (0, "")
    assert said.out == (
        "a-foreign-method-with-a-very-long-name: a method as another package would bring\n"
        "it, with [brackets] and a summary of some length\n"
        "\n"
        "Müller's way: pull θ back to `start`, see `AdamW`.\n"
        "\n"
        "    θ_t ← θ_t - (λ / (1 + λ)) (θ_t - θ₀),\n"
        "    λ ≥ 0\n"
        "\n"
        "    + 1\n"
        "\n"
        "It has\n"
        "\n"
        "- a first point that is so long that it does not fit into a single line of\n"
        "  eighty columns, not at all;\n"
        "- a second one:\n"
        "\n"
        '    code = "as it   stands"\n'
        "\n"
        "source   Müller 2020\n"
        "decides  clipping (no mix with full, component-clip); phases (no mix with\n"
        "         gradual-unfreezing)\n"
        "\n"
        "options\n"
        "  strength  float, must be given\n"
        "            λ, the strength; see `evenkeel.components`.\n"
        '  rule      str, default "a rule"\n'
        "            which.\n"
        "\n"
        "use\n"
        f'  MethodTrainer(..., methods=["{Foreign.name}:strength=STRENGTH"])\n'
        f"  evenkeel finetune --task rte --methods {Foreign.name}:strength=STRENGTH --out DIR\n"
    )


def test_a_method_without_a_docstring(evenkeel: Callable[..., Any], foreign: dict[str, type[Method]]) -> None:
    assert evenkeel("methods", "mute").out == (
        "mute: says nothing\n\nsource  nowhere\n\noptions\n  strength  float, default 1.0\n\nuse\n"
        '  MethodTrainer(..., methods=["mute:strength=1.0"])\n'
        "  evenkeel finetune --task rte --methods mute:strength=1.0 --out DIR\n"
    )


def test_a_method_without_options(evenkeel: Callable[..., Any], foreign: dict[str, type[Method]]) -> None:
    foreign["bare"] = Bare
    assert evenkeel("methods", "bare").out == (
        "bare\n\nNo dataclass, no summary, no source.\n\nuse\n"
        '  MethodTrainer(..., methods=["bare"])\n'
        "  evenkeel finetune --task rte --methods bare --out DIR\n"
    )


def test_colours_are_for_names_types_and_code(
    evenkeel: Callable[..., Any], foreign: dict[str, type[Method]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_force_terminal", True)
    monkeypatch.setattr(console, "_color_system", ColorSystem.STANDARD)
    lines = evenkeel("methods", "full").out.splitlines()
    assert lines[0] == "\x1b[1mfull\x1b[0m: all weights at once, AdamW with bias correction, global clipping at 1.0"
    assert any(line.endswith("\x1b[2mfloat\x1b[0m, default 1.0") for line in lines)
    assert any("\x1b[36m`inf`\x1b[0m" in line for line in lines)


def test_plain_letters_where_the_terminal_knows_no_others(
    evenkeel: Callable[..., Any], foreign: dict[str, type[Method]], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    assert evenkeel("methods", Foreign.name).code == 0
    lines = written.getvalue().decode("ascii").splitlines()
    assert "    theta_t <- theta_t - (lambda / (1 + lambda)) (theta_t - theta_0)," in lines
    assert r"source   M\xfcller 2020" in lines


# --- JSON


def test_json_of_all(evenkeel: Callable[..., Any], foreign: dict[str, type[Method]]) -> None:
    said = evenkeel("methods", "--json")
    assert (said.code, said.err) == (0, "")
    found = json.loads(said.out)
    assert [(one["name"], one["summary"]) for one in found] == [
        (name, method.summary) for name, method in foreign.items()
    ]
    assert said.out.isascii()
    assert len(said.out.splitlines()) == len(foreign) + 2


def test_json_of_one(evenkeel: Callable[..., Any], foreign: dict[str, type[Method]]) -> None:
    said = evenkeel("methods", Foreign.name, "--json")
    assert (said.code, said.err) == (0, "")
    found = json.loads(said.out)
    assert r"    \lambda \ge 0" in found.pop("text").splitlines()
    assert found == {
        "name": Foreign.name,
        "summary": Foreign.summary,
        "source": "Müller 2020",
        "owns": ["clipping", "phases"],
        "options": [
            {
                "name": "strength",
                "type": "float",
                "default": None,
                "meaning": r":math:`\lambda`, the strength; see :func:`evenkeel.components`.",
            },
            {"name": "rule", "type": "str", "default": '"a rule"', "meaning": "which."},
        ],
        "rivals": {"clipping": ["full", "component-clip"], "phases": ["gradual-unfreezing"]},
        "example": f"{Foreign.name}:strength=STRENGTH",
    }


# --- what people get wrong


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_an_unknown_name_is_one_message_and_exit_code_2(evenkeel: Callable[..., Any], more: list[str]) -> None:
    said = evenkeel("methods", "componnent-clip", *more)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("error: unknown method 'componnent-clip': did you mean 'component-clip'? Known: ")
    assert [name for name in known_methods() if name not in said.err] == []


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import atexit, sys; from evenkeel.cli import main\n"
        "heavy = ('torch', 'transformers', 'datasets')\n"
        "atexit.register(lambda: print('loaded:', [name for name in heavy if name in sys.modules]))\n"
        "main()"
    )
    command = [sys.executable, "-c", code, "methods", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--json" in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded: []"


# --- reStructuredText


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("Two\nlines.", "Two lines."),
        ("One.\n\nTwo.", "One.\n\nTwo."),
        (":math:`a\n+ b` is a sum", "a + b is a sum"),
        ("see :meth:`~a.b.C.d`, :class:`C` and :py:func:`the words <a.b>`", "see `d`, `C` and `the words`"),
        ("1. one\n   goes on\n2. two", "1. one goes on\n2. two"),
        ("Such as::\n\n    a\n      b", "Such as:\n\n    a\n      b"),
        (">>> 1 +\n... 1\n2", "    >>> 1 +\n    ... 1\n    2"),
        (".. math:: a \\le b\n\nand", "    a ≤ b\n\nand"),
        (".. math::\n    a\n\n    b\n\nand\n\n    \\le", "    a\n\n    b\n\nand\n\n    \\le"),
        (".. math::", ""),
        (".. math::\n    a\n    + b", "    a\n    + b"),
        ("a `title`_, *stressed*, :math:`unclosed", "a `title`_, *stressed*, :math:`unclosed"),
    ],
)
def test_markup_is_made_readable(text: str, shown: str) -> None:
    assert readable(text) == shown


# --- TeX


@pytest.mark.parametrize(
    ("source", "shown", "plain"),
    [
        ("", "", ""),
        (r"\lambda\gamma_c, \Delta\varphi", "λγ_c, Δφ", "lambda gamma_c, Delta varphi"),
        (r"\lVert g_c \rVert_p^2", "‖g_c‖_p²", "||g_c||_p^2"),
        (r"10^{-6} x^{1/p} w^{(t-1)} y_{10} \theta_{t-1}", "10⁻⁶ x^(1/p) w^(t-1) y₁₀ θ_(t-1)", None),
        (r"\hat g_c, \hat{\beta}, \bar{xy}", "ĝ_c, β̂, bar(xy)", "hat(g)_c, hat(beta), bar(xy)"),
        (r"\sqrt{v} + \sqrt{\beta_2} + \sqrt{1 - b}", "√v + √β₂ + √(1 - b)", "sqrt(v) + sqrt(beta_2) + sqrt(1 - b)"),
        (r"\max_{j\le i}\min\left( 1, x \right)", "max_(j ≤ i) min(1, x)", "max_(j <= i) min(1, x)"),
        (r"\frac{a}{b} \frac{\sum_i x_i}{n}", "(a/b) Σ_i x_i / n", "(a/b) sum_i x_i / n"),
        (r"\frac12, \frac{a + 1}{2 n}", "1/2, (a + 1) / (2 n)", "1/2, (a + 1) / (2 n)"),
        (r"\frac{g}{\|g\|_2} + \frac{a}{x_i^{-2}}", "g/‖g‖₂ + a/x_i⁻²", "g/||g||_2 + a/x_i^-2"),
        (r"c / \frac{a}{b}, \lVert \frac{a}{b} \rVert + \frac{a}{b}^2", "c / (a/b), ‖a/b‖ + (a/b)²", None),
        (r"a, \quad b \qquad c\;d\!e", "a,   b   c de", "a,   b   c de"),
        (r"x = \begin{cases} a & b > 1 \\" "\n" r"c, & d \end{cases}", "x = {a, b > 1; c, d}", None),
        (r"\begin{aligned} a &= b \\ c &= d \end{aligned}", "a = b\nc = d", None),
        (r"W = \lceil w T \rceil / \lfloor 2 \rfloor", "W = ⌈w T⌉ / ⌊2⌋", "W = ceil(w T) / floor(2)"),
        (r"\#\{b : T_b \ge T\} = 5\%", "#{b : T_b ≥ T} = 5%", "#{b : T_b >= T} = 5%"),
        (r"x \text{ if } \mathrm{sign}(x) > 0", "x if sign(x) > 0", "x if sign(x) > 0"),
        ("a\n\\frac{b\n+ c}{d}", "a\n(b + c) / d", "a\n(b + c) / d"),
        (r"\mystery{a_{1}} + \other", r"\mystery{a₁} + \other", r"\mystery{a_1} + \other"),
    ],
)
def test_formulas_are_written_in_letters(source: str, shown: str, plain: str | None) -> None:
    assert plain_formula(source) == shown
    assert plain is None or plain_formula(source, unicode=False) == plain


@pytest.mark.parametrize("source", ["{a", "a}", r"\frac{a}", "x_", r"\hat", "^}", r"\sqrt{\frac{a}{b}", "{" * 5000])
def test_what_is_no_formula_stays_as_it_is(source: str) -> None:
    assert plain_formula(source) == source


PIECES = st.sampled_from(
    [*"ab1 +/(){}[]^_&~|.'\n", "\\", r"\frac", r"\sqrt", r"\hat", r"\left", r"\right.", r"\lVert", r"\rVert", r"\text",
     r"\le", r"\alpha", r"\\", r"\quad", r"\begin", r"\unknown", ".. math::\n\n    ", ":math:`", "`", "\n\n", "- "]
)  # fmt: skip


@given(st.lists(PIECES).map("".join))
def test_nothing_that_is_written_raises(text: str) -> None:
    assert plain_formula(text, unicode=False).isascii()
    assert readable(text, unicode=False).isascii()
    readable(text)


VALUES = {"a": 1.7, "b": 2.3, "c": 0.6, r"\beta": 3.1}
Formula = tuple[str, float, bool]  # TeX, its value, and whether it is a sum


def in_brackets(formula: Formula) -> str:
    return rf"\left( {formula[0]} \right)"


def as_factor(formula: Formula) -> str:
    return in_brackets(formula) if formula[2] else formula[0]


def larger(parts: st.SearchStrategy[Formula]) -> st.SearchStrategy[Formula]:
    pairs = st.tuples(parts, parts)
    return st.one_of(
        pairs.map(lambda two: (f"{two[0][0]} + {two[1][0]}", two[0][1] + two[1][1], True)),
        pairs.map(lambda two: (rf"{as_factor(two[0])} \, {as_factor(two[1])}", two[0][1] * two[1][1], False)),
        pairs.map(lambda two: (rf"\frac{{{two[0][0]}}}{{{two[1][0]}}}", two[0][1] / two[1][1], False)),
        parts.map(lambda one: (rf"\sqrt{{{one[0]}}}", math.sqrt(one[1]), False)),
        parts.map(lambda one: (rf"{in_brackets(one)}^{{\frac{{1}}{{2}}}}", math.sqrt(one[1]), False)),
    )


@given(st.recursive(st.sampled_from([(name, value, False) for name, value in VALUES.items()]), larger, max_leaves=8))
def test_brackets_keep_a_formulas_value(formula: Formula) -> None:
    plain = plain_formula(formula[0], unicode=False)
    product = re.sub(r"(?<=[\w)]) (?=[\w(])", "*", plain)
    names = {name.strip("\\"): value for name, value in VALUES.items()}
    value = eval(product.replace("^", "**"), {"sqrt": math.sqrt, **names})  # noqa: S307  the formula is ours
    assert value == pytest.approx(formula[1], rel=1e-9), plain
