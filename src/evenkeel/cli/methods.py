"""``evenkeel methods``: the methods of fine-tuning, all in a list, or one on a page of its own."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from evenkeel.cli._readable import ITEM, readable
from evenkeel.errors import MethodError, unknown_name

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

    from evenkeel.methods import Description, Option

__all__ = ["methods"]


def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The method to show; without it all are listed.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON, texts as reStructuredText, and nothing else.")
    ] = False,
) -> None:
    """List the methods of fine-tuning, or show one: what it does, its options, its source, and how to use it."""
    from evenkeel.cli._console import console
    from evenkeel.methods import describe, known_methods, rivals

    known = {found: describe(method) for found, method in known_methods().items()}
    if name is not None and name not in known:
        raise MethodError(unknown_name("method", name, known))
    if as_json:
        told = [_as_json(one, rivals(one, known.values())) for one in known.values() if name in (None, one.name)]
        typer.echo("[\n" + ",\n".join(told) + "\n]" if name is None else told[0])
        return
    with console.capture() as drawn:
        if name is None:
            _draw_list(console, known.values())
        else:
            _draw_page(console, known[name], rivals(known[name], known.values()))
    page = re.sub(r" +$", "", drawn.get(), flags=re.MULTILINE)
    console.file.write(page.encode(console.encoding, "backslashreplace").decode(console.encoding))


def _as_json(one: Description, clashes: Mapping[str, Sequence[str]]) -> str:
    import dataclasses
    import json

    return json.dumps({**dataclasses.asdict(one), "rivals": clashes, "example": one.example})


# --- drawing

_NAME = 28  # columns that names take at most


def _draw_list(console: Console, known: Collection[Description]) -> None:
    console.print(_columns([(one.name, _text(one.summary)) for one in known]))
    console.print()
    console.print(_text("`evenkeel methods NAME` shows one of them; a+b is one mix of both, everywhere."))


def _draw_page(console: Console, one: Description, clashes: Mapping[str, Sequence[str]]) -> None:
    """Print everything about a method; only the lines that one copies are never folded."""
    unicode = not console.options.ascii_only
    console.print(_text((one.name, "bold"), ": " * bool(one.summary) + one.summary))
    console.print()
    for part in _sections(one, clashes, unicode=unicode):
        for line in part:
            console.print(line)
        console.print()
    console.print(_text(("use", "bold")))
    for command in (
        f'MethodTrainer(..., methods=["{one.example}"])',
        f"evenkeel finetune --task rte --methods {shlex.quote(one.example)} --out DIR",
    ):
        console.print(_text(f"  {command}"), soft_wrap=True)


def _sections(
    one: Description, clashes: Mapping[str, Sequence[str]], *, unicode: bool
) -> Iterator[Sequence[RenderableType]]:
    if one.text:
        yield [_folded(line) for line in readable(one.text, unicode=unicode).splitlines()]
    decided = [word + f" (no mix with {', '.join(names)})" * bool(names) for word, names in clashes.items()]
    facts = [(label, _text(fact)) for label, fact in (("source", one.source), ("decides", "; ".join(decided))) if fact]
    if facts:
        yield [_columns(facts)]
    if one.options:
        rows = [(f"  {option.name}", _described(option, unicode)) for option in one.options]
        yield [_text(("options", "bold")), _columns(rows)]


def _described(option: Option, unicode: bool) -> Text:
    given = "must be given" if option.default is None else f"default {option.default}"
    meaning = readable(option.meaning, unicode=unicode)
    return _text((option.type, "dim"), f", {given}" + f"\n{meaning}" * bool(meaning))


def _columns(rows: Sequence[tuple[str, Text]]) -> Table:
    """Set names and texts side by side; what is too long is folded."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(overflow="fold", max_width=_NAME)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(_text((name, "bold")), text)
    return table


def _folded(line: str) -> RenderableType:
    """Fold a line below its own beginning; an item of a list below its text."""
    from rich.padding import Padding
    from rich.table import Table

    item = ITEM.match(line)
    if item is None:
        return Padding(_text(line.lstrip(" ")), (0, 0, 0, len(line) - len(line.lstrip(" "))))
    table = Table.grid()
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(item[0], _text(line[item.end() :]))
    return table


def _text(*parts: str | tuple[str, str]) -> Text:
    """Join texts, or texts and their styles; what stands for code has a colour."""
    from rich.text import Text

    shown = Text.assemble(*parts)
    shown.highlight_regex(r"`[^`]+`", "cyan")
    return shown
