"""reStructuredText as plain text, for terminals."""

from __future__ import annotations

import re
import textwrap

from evenkeel.cli._formula import plain_formula

__all__ = ["INDENT", "ITEM", "readable"]

INDENT = "    "  # of formulas and code
ITEM = re.compile(r"(?:[-*+]|\d+[.)]) +")  # what an item of a list begins with


def readable(text: str, *, unicode: bool = True) -> str:
    r"""Write reStructuredText as plain text: a paragraph is one line, to be folded; formulas and code are indented.

    Args:
        text: what a docstring says; markup that is not understood stays as it is.
        unicode: whether other letters can be shown than those of ASCII.

    Returns:
        The text.

    Example:
        >>> print(readable("The rate :math:`\\eta`,\nsee ``lr``:\n\n.. math::\n\n    \\eta' = \\frac{\\eta}{2}"))
        The rate η, see `lr`:
        <BLANKLINE>
            η' = η/2
    """
    shown, formula = [], False
    for block in re.split(r"\n\s*\n", text):
        if block.startswith(".. math::"):
            formula, block = True, INDENT + block.removeprefix(".. math::").strip()
        if not block.strip():
            continue
        if not block[0].isspace():
            formula = False
            shown.append(_paragraph(block, unicode))
        elif formula:
            shown.append(textwrap.indent(plain_formula(block, unicode=unicode), INDENT))
        else:
            shown.append(textwrap.indent(textwrap.dedent(block), INDENT))
    return "\n\n".join(shown)


def _paragraph(block: str, unicode: bool) -> str:
    if block.startswith(">>>"):
        return textwrap.indent(block, INDENT)
    lines: list[str] = []
    for line in map(str.strip, block.splitlines()):
        if lines and not (ITEM.match(block) and ITEM.match(line)):  # a list begins with an item
            lines[-1] += f" {line}"
        else:
            lines.append(line)
    joined = re.sub(r"::$", ":", "\n".join(lines))
    joined = re.sub(r":math:`([^`]+)`", lambda found: plain_formula(found[1], unicode=unicode), joined)
    joined = re.sub(r":(?:\w+:)?\w+:`~(?:[^`]*\.)?([^`]+)`", r"`\1`", joined)  # ~ shows only the last name
    joined = re.sub(r":(?:\w+:)?\w+:`([^`<]+?)(?: *<[^`]*>)?`", r"`\1`", joined)
    return re.sub(r"``([^`]+)``", r"`\1`", joined)
